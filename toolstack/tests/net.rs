//! Network devices on a whole machine in threads.

#[path = "net/frames.rs"]
mod frames;
#[path = "net/hostile_back.rs"]
mod hostile_back;
#[path = "net/hostile_front.rs"]
mod hostile_front;
#[path = "net/life.rs"]
mod life;
#[path = "net/machine.rs"]
mod machine;
#[path = "net/meeting.rs"]
mod meeting;
#[path = "net/raw.rs"]
mod raw;
