//! What differs between two runs of the same work and says nothing about refshim: addresses, times, and what a
//! registry or a client makes up anew each time. All of it is taken out here.

use std::sync::LazyLock;

use regex::{Captures, Regex};

/// Fields that belong to one connection, and the one that refshim adds to every answer.
const NOT_COMPARED: [&str; 4] = ["connection", "keep-alive", "transfer-encoding", "x-request-id"];

/// What is made up anew each time, and what stands for it.
static CHANGING: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
    [
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
        (r#"_state=[^&\s"\\]+"#, "_state=STATE"),
        (r#"\btime="[^"]*" "#, ""),
        (r"127\.0\.0\.1:\d+->", "CLIENT->"),
    ]
    .map(|(pattern, name)| (Regex::new(pattern).unwrap(), name))
});

/// What a token has to be for: docker-registry says it in an order of chance.
static SCOPE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r#"scope="[^"]*""#).unwrap());

/// The addresses of one side, and what stands for them.
pub(super) struct Normal {
    names: Vec<(String, &'static str)>,
}

impl Normal {
    /// In this order, each name standing for all that is to be read as it.
    pub(super) fn new(names: Vec<(String, &'static str)>) -> Self {
        Self { names }
    }

    pub(super) fn text(&self, text: &str) -> String {
        let named = self.names.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
        let named = SCOPE.replace_all(&named, |scope: &Captures<'_>| sorted_words(&scope[0])).into_owned();
        CHANGING.iter().fold(named, |text, (pattern, name)| pattern.replace_all(&text, *name).into_owned())
    }

    /// The fields of an answer's head, sorted. An address that names the server it came from may as well
    /// be relative, and refshim's are.
    pub(super) fn fields<'a>(&self, head: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<String> {
        let compared = head.map(|(name, value)| (name.to_ascii_lowercase(), value));
        let compared = compared.filter(|(name, _)| !NOT_COMPARED.contains(&name.as_str()));
        let mut fields: Vec<String> = compared
            .map(|(name, value)| match name.as_str() {
                "date" => format!("{name}: DATE"),
                "location" | "link" => format!("{name}: {}", self.text(value).replace("http://HOST", "")),
                _ => format!("{name}: {}", self.text(value)),
            })
            .collect();
        fields.sort();
        fields
    }

    /// Method, target, status, length and user agent of a line in the combined log format.
    pub(super) fn logged(&self, line: &str) -> String {
        let parts: Vec<&str> = line.split('"').collect();
        let &[_, request, answer, _, _, agent, ..] = parts.as_slice() else { return line.to_owned() };
        let target = request.rsplit_once(' ').map_or(request, |(target, _version)| target);
        self.text(&format!("{target}{answer}{agent}"))
    }
}

fn sorted_words(text: &str) -> String {
    let mut words: Vec<&str> = text.split([' ', ',', ':', '"']).collect();
    words.sort_unstable();
    words.join(" ")
}
