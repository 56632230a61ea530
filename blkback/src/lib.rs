//! Block back end: serves virtual block devices to guests
