"""The benchmarks of the command `jaxcnn benchmark`."""
