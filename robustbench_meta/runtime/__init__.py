"""What lies below all else: devices, files, hashes."""
