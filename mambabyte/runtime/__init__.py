"""What other packages need from the operating system: files, signals, secrets, devices, processes."""
