//! Log lines, as text or JSON. Each says which request it is about: what a request says of itself is known to all that
//! runs [within](within_request) it, and is formatted only when a line is written. A span of `tracing` would be
//! formatted for each request, and hardly any request logs anything.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::ser::{SerializeMap as _, Serializer};
use serde_json::{Map, Value};
use tokio::task_local;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;

use crate::config::{LogConfig, LogFormat};

/// The log filter, which can be changed while refshim serves. Cheap to clone.
#[derive(Clone)]
pub struct LogFilter {
    current: Arc<Mutex<String>>,
    put: Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
}

/// The log filter cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It is malformed.
    #[error(transparent)]
    Malformed(#[from] ParseError),
    /// There is no log any more.
    #[error(transparent)]
    Gone(#[from] reload::Error),
}

/// Starts logging to standard error.
///
/// # Errors
/// The filter is malformed.
pub fn start_logging(log: &LogConfig) -> Result<LogFilter, ParseError> {
    let logs = tracing_subscriber::fmt().with_writer(std::io::stderr).event_format(Lines(log.format));
    let logs = logs.with_env_filter(parsed(&log.filter)?).with_filter_reloading();
    let handle = logs.reload_handle();
    logs.init();
    Ok(LogFilter {
        current: Arc::new(Mutex::new(log.filter.clone())),
        put: Arc::new(move |filter| handle.reload(filter)),
    })
}

/// Has each request of the client commands told on standard error.
pub fn tell_requests() {
    let lines = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).without_time();
    lines.with_level(false).with_target(false).with_env_filter("refshim::client=debug").init();
}

/// The filter in this text, in the syntax of the setting `log.filter`.
fn parsed(filter: &str) -> Result<EnvFilter, ParseError> {
    // The pool of the index's connections logs each of them that broke, where the index says once that they did.
    Ok(EnvFilter::try_new(filter)?.add_directive("deadpool.postgres=error".parse()?))
}

impl LogFilter {
    /// The filter in force.
    #[must_use]
    pub fn current(&self) -> String {
        self.lock().clone()
    }

    /// Filters by this from now on.
    ///
    /// # Errors
    /// It is malformed. Then nothing changes.
    pub fn set(&self, filter: &str) -> Result<(), FilterError> {
        let mut current = self.lock();
        (self.put)(parsed(filter)?)?;
        filter.clone_into(&mut current);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, String> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogFilter").field(&self.current()).finish()
    }
}

/// What is logged of a request with each line about it.
pub trait Described: Send + Sync {
    /// Its fields, as name and value.
    fn fields(&self) -> Vec<(&'static str, String)>;
}

task_local! {
    static REQUEST: Option<Arc<dyn Described>>;
}

/// Runs `work` as a part of this request.
pub fn within_request<F: Future>(
    request: Arc<dyn Described>,
    work: F,
) -> impl Future<Output = F::Output> + use<F> {
    REQUEST.scope(Some(request), work)
}

/// Runs `work`, in a task of its own, as a part of the request that is being worked on now.
pub fn within_this_request<F: Future>(work: F) -> impl Future<Output = F::Output> + use<F> {
    REQUEST.scope(REQUEST.try_with(Clone::clone).ok().flatten(), work)
}

/// Writes a line for each event.
struct Lines(LogFormat);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut line: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut logged = Line { target: event.metadata().target().to_owned(), ..Line::default() };
        event.record(&mut logged);
        SystemTime.format_time(&mut Writer::new(&mut logged.time))?;
        event.metadata().level().as_str().clone_into(&mut logged.level);
        logged.request = REQUEST.try_with(|request| request.as_ref().map(|it| it.fields())).ok().flatten();
        match self.0 {
            LogFormat::Text => writeln!(line, "{logged}"),
            LogFormat::Json => {
                let json = serde_json::to_string(&logged).map_err(|_| fmt::Error)?;
                writeln!(line, "{json}")
            }
        }
    }
}

/// One line.
#[derive(Default)]
struct Line {
    time: String,
    level: String,
    target: String,
    message: String,
    /// Each as name, value for JSON, and value for text.
    fields: Vec<(&'static str, Value, String)>,
    request: Option<Vec<(&'static str, String)>>,
}

impl Line {
    fn add(&mut self, field: &Field, json: impl Into<Value>, text: String) {
        match field.name() {
            "message" => self.message = text,
            // Of libraries that use `log`.
            "log.target" => json.into().as_str().unwrap_or_default().clone_into(&mut self.target),
            name if name.starts_with("log.") => {}
            name => self.fields.push((name, json.into(), text)),
        }
    }
}

impl Visit for Line {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value, value.to_string());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value, value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value, value.to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value, value.to_string());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value, format!("{value:?}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        self.add(field, text.clone(), text);
    }
}

/// As text: the request in braces, as `tracing` shows spans.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:>5} ", self.time, self.level)?;
        if let Some(request) = &self.request {
            let fields: Vec<_> = request.iter().map(|(name, value)| format!("{name}={value}")).collect();
            write!(f, "request{{{}}}: ", fields.join(" "))?;
        }
        write!(f, "{}: {}", self.target, self.message)?;
        self.fields.iter().try_for_each(|(name, _, text)| write!(f, " {name}={text}"))
    }
}

/// As JSON: the request in `span`, as `tracing` shows spans.
impl serde::Serialize for Line {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut line = serializer.serialize_map(None)?;
        line.serialize_entry("timestamp", &self.time)?;
        line.serialize_entry("level", &self.level)?;
        line.serialize_entry("message", &self.message)?;
        for (name, json, _) in &self.fields {
            line.serialize_entry(name, json)?;
        }
        line.serialize_entry("target", &self.target)?;
        if let Some(request) = &self.request {
            let named = [("name", "request".to_owned())];
            let fields = request.iter().cloned().chain(named);
            let span: Map<_, _> = fields.map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
            line.serialize_entry("span", &span)?;
        }
        line.end()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Pull;

    impl Described for Pull {
        fn fields(&self) -> Vec<(&'static str, String)> {
            vec![("request_id", "7".to_owned()), ("upstream", "hub".to_owned())]
        }
    }

    /// The two lines of an event outside of a request and within one, without their times.
    fn lines(format: LogFormat) -> Vec<String> {
        let written = Written::default();
        let writer = written.clone();
        let logs = tracing_subscriber::fmt().with_writer(move || writer.clone()).event_format(Lines(format));
        tracing::subscriber::with_default(logs.finish(), || {
            let log = || {
                let (path, none) = ("/v2/ \"x\"\n", None::<&str>);
                tracing::warn!(target: "refshim::x", path, shown = %"a b", bytes = 7, ratio = 0.5, all = true, none,
                    "said {}", 1);
            };
            log();
            let within = within_request(Arc::new(Pull), async {
                // A task of its own is a part of the request.
                let other = within_this_request(async move { log() });
                REQUEST.scope(None, other).await;
            });
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(within);
        });
        let written = written.0.lock().unwrap();
        let written = std::str::from_utf8(&written).unwrap();
        written
            .lines()
            .map(|line| {
                line.split_once(if format == LogFormat::Text { "Z " } else { "Z\"," }).unwrap().1.to_owned()
            })
            .collect()
    }

    #[test]
    fn a_line_of_text_says_which_request_it_is_about() {
        let event = r#"refshim::x: said 1 path="/v2/ \"x\"\n" shown=a b bytes=7 ratio=0.5 all=true"#;
        let expected =
            [format!(" WARN {event}"), format!(" WARN request{{request_id=7 upstream=hub}}: {event}")];
        assert_eq!(lines(LogFormat::Text), expected);
    }

    #[test]
    fn a_line_of_json_says_which_request_it_is_about() {
        let event = r#""level":"WARN","message":"said 1","path":"/v2/ \"x\"\n","shown":"a b","bytes":7,"ratio":0.5,"all":true,"target":"refshim::x""#;
        let span = r#","span":{"name":"request","request_id":"7","upstream":"hub"}"#;
        assert_eq!(lines(LogFormat::Json), [format!("{event}}}"), format!("{event}{span}}}")]);
    }
}
