"""What the drivers of Ethernet and InfiniBand fabrics have in common."""
