"""Files of trained networks that other programs run without jaxcnn."""
