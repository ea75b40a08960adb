//! Metrics of the process by the names that every Prometheus client library gives them. Read from `/proc` when they are
//! asked for; what cannot be read is left out, as everything is where there is no `/proc`.

use std::fmt;
use std::fs;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Clock ticks a second in `/proc` (`USER_HZ`), part of the kernel's interface on all of refshim's platforms.
const TICKS: f64 = 100.0;

/// This process.
#[derive(Debug)]
pub(super) struct Process {
    /// Seconds since 1970. Of `/proc`, systemd's `ProcSubset=pid` hides when the machine was booted.
    began: f64,
}

impl Process {
    /// This process, which has just begun.
    pub(super) fn new() -> Self {
        let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self { began: began.unwrap_or_default().as_secs_f64() }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: Option<f64>| {
            let Some(value) = value else { return Ok(()) };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        let stat = Stat::read();
        let memory = |field| in_status(field).map(|kibibytes| kibibytes * 1024.0);
        gauge("process_resident_memory_bytes", "Memory that is resident, in bytes", memory("VmRSS:"))?;
        gauge("process_virtual_memory_bytes", "Memory that is mapped, in bytes", memory("VmSize:"))?;
        gauge("process_open_fds", "File descriptors that are open", open_files())?;
        gauge("process_max_fds", "File descriptors that may be open", most_files())?;
        gauge("process_threads", "Threads of the process", in_status("Threads:"))?;
        gauge("process_start_time_seconds", "When the process was started, since 1970", Some(self.began))?;
        let Some(stat) = stat else { return Ok(()) };
        let cpu = ConstCounter::new(stat.cpu_ticks / TICKS);
        let help = "CPU time of the process, user and system";
        cpu.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, cpu.metric_type())?)
    }
}

/// What is taken of `/proc/self/stat` (proc(5)), in ticks.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // Behind the name of the program, which may have spaces and parentheses in it; next is field 3.
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        Some(Self { cpu_ticks: field(14)? + field(15)? })
    }
}

fn in_status(field: &str) -> Option<f64> {
    number_of(&fs::read_to_string("/proc/self/status").ok()?, field)
}

/// The first number in the line that begins with this.
fn number_of(text: &str, field: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(field))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

fn open_files() -> Option<f64> {
    // Without the one that lists them.
    let count = fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1);
    u32::try_from(count).ok().map(f64::from)
}

fn most_files() -> Option<f64> {
    number_of(&fs::read_to_string("/proc/self/limits").ok()?, "Max open files")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_have_any_name() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let text = format!("1 (a) b (c) S {}", fields.join(" "));
        assert_eq!(Stat::parse(&text), Some(Stat { cpu_ticks: 14.0 + 15.0 }));
        assert_eq!(Stat::parse("1 (a) S 4 5"), None);
    }

    #[test]
    fn a_number_is_that_of_its_line() {
        let text = "VmPeak:\t  9 kB\nVmRSS:\t  7 kB\nMax open files            1024   4096 files\n";
        assert_eq!(number_of(text, "VmRSS:"), Some(7.0));
        assert_eq!(number_of(text, "Max open files"), Some(1024.0));
        assert_eq!(number_of(text, "Threads:"), None);
    }
}
