"""The cost model: what a layout would take on a device, before it is built."""
