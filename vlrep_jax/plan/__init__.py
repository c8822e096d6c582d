"""What a compiled train step needs and costs, found without the devices it is compiled for."""
