//! Code shared by the property test and the fuzz target.

pub(crate) mod hostile;
