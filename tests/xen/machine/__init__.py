"""The real-Xen test machine: packages in, one QEMU a scenario out."""
