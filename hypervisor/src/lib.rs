//! The seam between drivers and a hypervisor: local (processes over memfds) and xen (device nodes)
