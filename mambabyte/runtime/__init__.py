"""What several rooms need from the operating system: files, signals, secrets, devices, processes."""
