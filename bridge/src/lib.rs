//! A learning Ethernet switch that has never heard of Xen
