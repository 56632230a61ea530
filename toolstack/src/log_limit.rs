//! Bounds the log lines that one guest can cause: of each kind of line, ten a device or domain, and then one a minute.
//!
//! Whatever it is that a guest repeats, its log line stands in one place of the program and names the guest, by its own fields or
//! by the span of the device. So lines are counted by that place and those fields, and no place needs a limit of its own. One
//! place logs failures of several kinds: they are told apart by their text without its numbers, in a few classes, so that no
//! guest has more by varying what it does.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use event_loop::TokenBucket;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Metadata, Subscriber, callsite};
use tracing_subscriber::layer::{Context, Filter};
use tracing_subscriber::registry::LookupSpan;

use crate::output::LogStderr;

/// Lines of one kind at once.
const BURST: u64 = 10;
/// Seconds for each further line: a bucket has tokens a second, and a line takes as many.
const LINE: u64 = 60;
/// Kinds of lines that are remembered before those that were not written lately are forgotten.
const KINDS: usize = 4096;
/// Classes of texts of one place.
const CLASSES: u64 = 16;
/// The fields with a text, of which the class is made.
const TEXTS: [&str; 3] = ["message", "error", "why"];
/// The fields that say whose line it is.
const WHOSE: [&str; 5] = ["domid", "devid", "port", "device", "uid"];

/// The limits, for a layer of `tracing_subscriber`.
#[derive(Debug)]
pub(crate) struct LogLimit {
    started: Instant,
    lines: Mutex<Lines>,
}

impl LogLimit {
    pub(crate) fn new() -> LogLimit {
        LogLimit { started: Instant::now(), lines: Mutex::default() }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Filter<S> for LogLimit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut whose = Whose::default();
        attributes.record(&mut whose);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(whose);
        }
    }

    fn event_enabled(&self, event: &Event<'_>, context: &Context<'_, S>) -> bool {
        // Whoever asks for more detail asks for all of it.
        if *event.metadata().level() > Level::INFO {
            return true;
        }
        let mut whose = Whose::default();
        event.record(&mut whose);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(of_span) = span.extensions().get::<Whose>() {
                whose.add(of_span);
            }
        }
        let Some(whose) = whose.key() else { return true };
        let kind = (event.metadata().callsite(), whose);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(left_out) = lines.admit(kind, self.started.elapsed()) else { return false };
        if left_out > 0 {
            let _ = writeln!(LogStderr, "xpv: {left_out} lines like the next one were left out");
        }
        true
    }
}

/// Whose line it is: the device or domain that its fields name.
#[derive(Debug, Default)]
struct Whose {
    hasher: DefaultHasher,
    any: bool,
    /// The text of a line, without its numbers.
    text: DefaultHasher,
}

impl Whose {
    fn add(&mut self, other: &Whose) {
        if other.any {
            other.hasher.finish().hash(&mut self.hasher);
            self.any = true;
        }
    }

    /// Whose line it is, and of what class; `None` for a line that names nobody.
    fn key(&self) -> Option<u64> {
        let class = self.text.finish() % CLASSES;
        let mut hasher = self.hasher.clone();
        class.hash(&mut hasher);
        self.any.then(|| hasher.finish())
    }
}

impl Visit for Whose {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if WHOSE.contains(&field.name()) {
            (field.name(), format!("{value:?}")).hash(&mut self.hasher);
            self.any = true;
        } else if TEXTS.contains(&field.name()) {
            format!("{value:?}").chars().filter(|c| !c.is_ascii_digit()).for_each(|c| c.hash(&mut self.text));
        }
    }
}

/// A place in the program, and whose lines.
type Kind = (callsite::Identifier, u64);

/// How many lines of each kind were written.
#[derive(Debug, Default)]
struct Lines {
    kinds: HashMap<Kind, Budget>,
}

#[derive(Debug)]
struct Budget {
    bucket: TokenBucket,
    left_out: u64,
}

impl Lines {
    /// Whether a line may be written now: how many of its kind were left out before it.
    fn admit(&mut self, kind: Kind, now: Duration) -> Option<u64> {
        if self.kinds.len() >= KINDS && !self.kinds.contains_key(&kind) {
            self.kinds.retain(|_, budget| budget.bucket.wait(BURST * LINE, now) != Some(Duration::ZERO));
        }
        let budget = self
            .kinds
            .entry(kind)
            .or_insert_with(|| Budget { bucket: TokenBucket::new(1, BURST * LINE, now), left_out: 0 });
        if budget.bucket.take(LINE, now) {
            return Some(std::mem::take(&mut budget.left_out));
        }
        budget.left_out += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::SubscriberExt;

    /// Counts the lines that pass.
    #[derive(Clone, Default)]
    struct Counted(std::sync::Arc<Mutex<Vec<&'static str>>>);

    impl<S: Subscriber> Layer<S> for Counted {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().unwrap().push(event.metadata().name());
        }
    }

    /// The number of lines that `body` has written.
    fn lines(body: impl FnOnce()) -> usize {
        let counted = Counted::default();
        let subscriber = tracing_subscriber::registry().with(counted.clone().with_filter(LogLimit::new()));
        tracing::subscriber::with_default(subscriber, body);
        let lines = counted.0.lock().unwrap();
        lines.len()
    }

    #[test]
    fn lines_of_one_device_are_limited_and_those_of_others_are_not() {
        let flood = || (0..100).for_each(|round| tracing::info!(round, "connected"));
        let device = |domid: u16, devid: u32| tracing::error_span!("vif", domid, devid).in_scope(flood);
        assert_eq!(lines(|| device(1, 0)), 10);
        assert_eq!(lines(|| [(1, 0), (1, 1), (2, 0)].into_iter().for_each(|(a, b)| device(a, b))), 30);
        // Another line of the same device.
        let other = || tracing::error_span!("vif", domid = 1, devid = 0).in_scope(|| tracing::warn!("other"));
        assert_eq!(lines(|| (device(1, 0), other()).1), 11);
    }

    #[test]
    fn failures_of_one_place_are_told_apart_by_their_texts_and_not_by_their_numbers() {
        let fail = |what: &str| tracing::error!(domid = 1, "closing: {what}");
        let by_numbers = lines(|| (0..100).for_each(|n| fail(&format!("producer index {n}"))));
        assert_eq!(by_numbers, 10);
        assert_eq!(lines(|| (0..100).for_each(|n| fail(["bad index", "bad request"][n % 2]))), 20);
        let word = |n: usize| ["a", "b"].repeat(n).concat();
        assert!(lines(|| (0..1000).for_each(|n| fail(&word(n)))) <= 10 * CLASSES as usize);
    }

    #[test]
    fn lines_are_limited_by_the_domain_that_they_name_themselves() {
        let flood = |domid: u16| (0..100).for_each(|_| tracing::warn!(domid, "quota exceeded"));
        assert_eq!(lines(|| flood(1)), 10);
        assert_eq!(lines(|| (flood(1), flood(2)).1), 20);
    }

    #[test]
    fn lines_of_nobody_and_debug_lines_are_all_written() {
        assert_eq!(lines(|| (0..100).for_each(|_| tracing::info!("started"))), 100);
        assert_eq!(lines(|| (0..100).for_each(|_| tracing::debug!(domid = 1, "request"))), 100);
    }

    #[test]
    fn a_line_a_minute_follows_and_says_how_many_were_left_out() {
        let mut lines = Lines::default();
        let callsite = tracing::callsite!(name: "test", kind: tracing::metadata::Kind::EVENT, fields: domid);
        let kind = || (callsite::Identifier(callsite), 1);
        let start = Duration::from_secs(5);
        let admitted = (0..50).filter(|_| lines.admit(kind(), start) == Some(0)).count();
        assert_eq!(admitted, 10);
        assert_eq!(lines.admit(kind(), start + Duration::from_secs(59)), None);
        assert_eq!(lines.admit(kind(), start + Duration::from_secs(60)), Some(41));
        assert_eq!(lines.admit(kind(), start + Duration::from_secs(60)), None);
    }

    #[test]
    fn kinds_that_were_not_written_lately_are_forgotten() {
        let mut lines = Lines::default();
        let callsite = tracing::callsite!(name: "test2", kind: tracing::metadata::Kind::EVENT, fields: domid);
        for domid in 0..3 * KINDS as u64 {
            let now = Duration::from_secs(domid);
            assert_eq!(lines.admit((callsite::Identifier(callsite), domid), now), Some(0));
        }
        assert!(lines.kinds.len() <= KINDS);
    }
}
