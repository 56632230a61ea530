//! Block front end: a guest's side of a virtual block device
