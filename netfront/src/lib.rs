//! Network front end: a guest's side of a vif
