"""The measurements of the command `jaxcnn benchmark`."""
