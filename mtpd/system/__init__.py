"""What programs and library need from the machine: files, locks, signals, threads, devices, the terminal."""
