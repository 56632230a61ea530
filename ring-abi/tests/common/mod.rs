//! What the property test and the fuzz target share.

pub(crate) mod hostile;
