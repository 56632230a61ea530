//! Policies over event channels: doorbells, polling, pacing
