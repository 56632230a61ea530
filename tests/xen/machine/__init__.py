"""The real-Xen test machine: makes images of Debian packages, and runs each scenario in a QEMU."""
