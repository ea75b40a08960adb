//! What commands ask on a terminal, and what stays on it when they end.

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::Shell;
use super::failures::never_done;
use crate::support::{Content, IMAGE_MANIFEST, Registry, Scripted, USER, digest_of};

/// What a terminal shows in the end of what was written to it: lines, and the movements that bars need.
fn screen(written: &str) -> Vec<String> {
    let (mut lines, mut row, mut column): (Vec<Vec<char>>, usize, usize) = (vec![Vec::new()], 0, 0);
    let mut characters = written.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\n' => row += 1,
            '\r' => column = 0,
            '\u{1b}' if characters.next_if_eq(&'[').is_some() => {
                let mut number = String::new();
                let command = loop {
                    match characters.next() {
                        Some(digit) if digit.is_ascii_digit() || digit == ';' || digit == '?' => {
                            number.push(digit);
                        }
                        other => break other.unwrap_or(' '),
                    }
                };
                let count: usize = number.parse().unwrap_or(1);
                match command {
                    'A' => row = row.saturating_sub(count),
                    'B' => row += count,
                    'C' => column += count,
                    'D' => column = column.saturating_sub(count),
                    'K' if number == "2" => lines[row].clear(),
                    'K' => lines[row].truncate(column),
                    'J' => {
                        lines.truncate(row + 1);
                        lines[row].truncate(column);
                    }
                    _ => {}
                }
            }
            _ => {
                let line = &mut lines[row];
                line.resize(line.len().max(column + 1), ' ');
                line[column] = character;
                column += 1;
            }
        }
        lines.resize(lines.len().max(row + 1), Vec::new());
    }
    let lines = lines.into_iter().map(|line| line.into_iter().collect::<String>().trim_end().to_owned());
    lines.filter(|line| !line.is_empty()).collect()
}

/// A registry that has an image, and gives of its layer the first half alone, until it is released.
fn half(release: &Arc<(Mutex<bool>, Condvar)>) -> (Scripted, Content) {
    let layer = "x".repeat(1 << 20);
    let image = Content::image("{}", &layer);
    let (bytes, digest) = (String::from_utf8(image.bytes.clone()).unwrap(), digest_of(layer.as_bytes()));
    let release = Arc::clone(release);
    let registry = Scripted::start(move |exchange| {
        let line = exchange.request.line.clone();
        let (media_type, body, sent) = if line.contains(&digest) {
            ("a/b", layer.as_str(), layer.len() / 2)
        } else if line.contains("/manifests/v1") {
            (IMAGE_MANIFEST, bytes.as_str(), bytes.len())
        } else {
            ("a/b", "{}", 2)
        };
        let length = body.len();
        exchange.answer(&format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{}",
            &body[..sent]
        ));
        if sent < length {
            let (released, waiting) = &*release;
            let _released = waiting.wait_while(released.lock().unwrap(), |released| !*released).unwrap();
        }
    });
    (registry, image)
}

/// A shell on a terminal of its own, in which something was typed.
struct Terminal {
    script: Child,
    keyboard: ChildStdin,
    shown: ChildStdout,
    written: Vec<u8>,
}

impl Terminal {
    /// Runs a command of refshim. In the end it shows the exit code and whether the terminal shows what is typed.
    fn of(shell: &Shell, columns: usize, command: &str) -> Self {
        let program = env!("CARGO_BIN_EXE_refshim");
        // The shell lives on until all was read: what is written right before the end of a session may be lost.
        let typed = format!(
            "stty rows 24 cols {columns}; sh -c 'echo pid $$.; exec {program} {command}'; echo ended $?; \
             stty -a | grep -o -e '-*echo ' | tr -d ' ' | sed 's/$/!/'; read line"
        );
        let mut script = Command::new("script")
            .args(["--quiet", "--return", "--flush", "--command", &typed, "/dev/null"])
            .current_dir(shell.path(""))
            .env("HOME", shell.path(""))
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (keyboard, shown) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
        Self { script, keyboard, shown, written: Vec::new() }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.written).into_owned()
    }

    /// Reads until this is there, and that behind it; what is between them.
    fn read_until(&mut self, part: &str, behind: &str) -> String {
        loop {
            let text = self.text();
            if let Some((_, rest)) = text.split_once(part)
                && let Some((between, _)) = rest.split_once(behind)
            {
                break between.to_owned();
            }
            let mut chunk = [0; 4096];
            let read = self.shown.read(&mut chunk).unwrap();
            assert_ne!(read, 0, "no {part} and {behind} in {text}");
            self.written.extend_from_slice(&chunk[..read]);
        }
    }

    fn types(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Ctrl-C. As a signal: with a key the terminal throws away what is on its way to the screen.
    fn interrupt(&mut self) {
        let pid = self.read_until("pid ", ".");
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    }

    /// Ends the session, once the command has ended with this code and left a terminal that shows what is typed.
    #[track_caller]
    fn ends(mut self, code: i32) -> String {
        assert_eq!(self.read_until("ended ", "\r").trim(), code.to_string(), "{}", self.text());
        assert_eq!(self.read_until("ended ", "!").split_whitespace().last(), Some("echo"), "{}", self.text());
        self.types("\n");
        assert!(self.script.wait().unwrap().success());
        self.text()
    }
}

#[test]
fn a_login_is_asked_for_and_the_password_is_not_shown() {
    let registry = Registry::with_user();
    let host = registry.address.to_string();
    for (password, code) in [(USER.1, 0), ("wrong", 4)] {
        let shell = Shell::new();
        let mut terminal = Terminal::of(&shell, 120, &format!("login {host}"));
        terminal.read_until("User name for ", ": ");
        terminal.types(&format!("{}\n", USER.0));
        terminal.read_until("Pass", "word: ");
        terminal.types(&format!("{password}\n"));
        let shown = terminal.ends(code);
        assert!(shown.contains(USER.0) && !shown.contains(password), "{shown}");
        assert_eq!(shell.path(".docker/config.json").exists(), code == 0);
    }
}

/// Whatever a command waits for.
#[test]
fn ctrl_c_ends_a_command_that_waits_for_what_is_typed() {
    let registry = Registry::with_user();
    let host = registry.address.to_string();
    let (login, copy) = (format!("login {host}"), format!("copy oci:a:v1 {host}/a:v1"));
    let with_password = format!("{copy} --username name --password-stdin");
    let attach = format!("attach {host}/a:v1 --artifact-type a/b --username name --password-stdin f");
    let repositories = format!("gc --repositories-from - --upstream http://{host} --data-dir data");
    let cases: [(&str, &[(&str, &str)]); 5] = [
        (&login, &[("User name", "")]),
        (&login, &[("User name", "name\n"), ("Password", "")]),
        (&with_password, &[("pid", "")]),
        (&attach, &[("pid", "half a pass")]),
        (&repositories, &[("pid", "a\n")]),
    ];
    for (command, steps) in cases {
        let shell = Shell::new();
        shell.write("f", "f");
        let mut terminal = Terminal::of(&shell, 120, command);
        for (prompt, answer) in steps {
            terminal.read_until(prompt, "");
            terminal.types(answer);
        }
        // It may not have come to where it waits yet: whenever it comes, it ends.
        std::thread::sleep(Duration::from_millis(300));
        terminal.interrupt();
        let shown = terminal.ends(130);
        assert!(shown.contains("refshim: interrupted"), "{command}: {shown}");
    }
}

#[test]
fn ctrl_c_leaves_no_bars_and_its_last_line() {
    let taker = format!("{}/a:v1", never_done().address);
    for (to, columns) in [("oci:out", 120), (taker.as_str(), 120), ("oci:out", 60)] {
        let release = Arc::new((Mutex::new(false), Condvar::new()));
        let (registry, image) = half(&release);
        let shell = Shell::new();
        let command = format!("copy {}/a:v1 {to}", registry.address);
        let mut terminal = Terminal::of(&shell, columns, &command);
        // The bar of the layer is there, and the layer does not come to its end.
        let name = &image.value["layers"][0]["digest"].as_str().unwrap()[..19];
        let bar = terminal.read_until(name, " of 1.05 MB");
        // Whole, however narrow the terminal is, with room for the time that is left.
        assert_eq!(bar.chars().count(), columns - "sha256:0123456789ab of 999.99 MB  10s".len(), "{bar:?}");
        terminal.interrupt();
        let written = terminal.ends(130);
        *release.0.lock().unwrap() = true;
        release.1.notify_all();
        let screen = screen(&written);
        let last = screen.iter().take_while(|line| !line.starts_with("ended")).last().unwrap();
        assert!(last.ends_with("the same command again sends only the rest"), "{screen:?}");
        assert!(
            !screen.iter().any(|line| line.contains(" of ") || line.contains("sha256:")),
            "{screen:?} {written:?}"
        );
    }
}
