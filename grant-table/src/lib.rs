//! Policies over sharing, mapping, copying and flipping granted pages
