"""What programs and library need of the machine: files, locks, signals, threads, devices, the terminal."""
