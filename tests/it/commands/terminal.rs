//! What stays on a terminal when a command ends.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use super::Shell;
use crate::support::{Content, IMAGE_MANIFEST, Scripted, digest_of};

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

#[test]
fn ctrl_c_leaves_no_bars_and_its_last_line() {
    let taker = Scripted::start(|exchange| {
        let method = exchange.request.line.split(' ').next().unwrap().to_owned();
        match method.as_str() {
            "POST" => exchange.answer_status("202 Accepted\r\nlocation: /v2/a/blobs/uploads/1?state=x"),
            "PUT" => loop {
                std::thread::park();
            },
            _ => exchange.answer_status("404 Not Found"),
        }
    });
    let taker = format!("{}/a:v1", taker.address);
    for (to, columns) in [("oci:out", 120), (taker.as_str(), 120), ("oci:out", 60)] {
        let release = Arc::new((Mutex::new(false), Condvar::new()));
        let (registry, image) = half(&release);
        let shell = Shell::new();
        let program = env!("CARGO_BIN_EXE_refshim");
        // The shell lives on until all was read: what is written right before the end of a session may be lost.
        let typed = format!(
            "stty rows 24 cols {columns}; sh -c 'echo pid $$.; exec {program} copy {}/a:v1 {to}'; echo ended $?; read line",
            registry.address
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
        let (mut keyboard, mut shown) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
        let mut written = Vec::new();
        // Until this is there, and that behind it.
        let mut read_until = |part: &str, behind: &str, written: &mut Vec<u8>| loop {
            let mut chunk = [0; 4096];
            let text = String::from_utf8_lossy(written).into_owned();
            if let Some((_, rest)) = text.split_once(part)
                && let Some((between, _)) = rest.split_once(behind)
            {
                break between.to_owned();
            }
            let read = shown.read(&mut chunk).unwrap();
            assert_ne!(read, 0, "no {part} and {behind} in {text}");
            written.extend_from_slice(&chunk[..read]);
        };
        // The bar of the layer is there, and the layer does not come to its end.
        let name = &image.value["layers"][0]["digest"].as_str().unwrap()[..19];
        let bar = read_until(name, " of 1.05 MB", &mut written);
        // Whole, however narrow the terminal is, with room for the time that is left.
        assert_eq!(bar.chars().count(), columns - "sha256:0123456789ab of 999.99 MB  10s".len(), "{bar:?}");
        // A signal, and no key: with a key the terminal throws away what is on its way to the screen.
        let pid = String::from_utf8_lossy(&written)
            .split_once("pid ")
            .unwrap()
            .1
            .split('.')
            .next()
            .unwrap()
            .to_owned();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        read_until("ended 130", "", &mut written);
        keyboard.write_all(b"\n").unwrap();
        assert!(script.wait().unwrap().success());
        *release.0.lock().unwrap() = true;
        release.1.notify_all();
        let written = String::from_utf8(written).unwrap();
        let screen = screen(&written);
        let last = screen.iter().take_while(|line| !line.starts_with("ended")).last().unwrap();
        assert!(last.ends_with("the same command again sends only the rest"), "{screen:?}");
        assert!(
            !screen.iter().any(|line| line.contains(" of ") || line.contains("sha256:")),
            "{screen:?} {written:?}"
        );
    }
}
