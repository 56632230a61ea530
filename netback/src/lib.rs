//! Network back end: a guest's vif as a port of the bridge
