//! The properties with bytes that are likely to be meaningful.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const DIGEST: &str = "sha256:0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a";

/// Words in any order, some of them mutilated.
fn words(words: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        8 => select(words).prop_map(|word| word.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..3),
        1 => (select(words), any::<prop::sample::Index>()).prop_map(|(word, at)| {
            word.as_bytes().iter().copied().take(at.index(word.len() + 1)).collect()
        }),
    ];
    vec(word, 0..12).prop_map(|words| words.concat())
}

fn after_any_byte(text: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (any::<u8>(), text).prop_map(|(first, text)| [vec![first], text].concat())
}

const PATH: &[&str] = &[
    "/v2/",
    "/v2",
    "a",
    "a/b",
    "/",
    "manifests",
    "/manifests/",
    "/references",
    "/referrers/",
    "latest",
    DIGEST,
    "sha256%3A",
    "%2F",
    "%2f",
    "..",
    ".",
    "-",
    "_",
    "A",
    "/blobs/uploads/",
    "%",
    "%00",
    "?",
];

const NAME: &[&str] = &[
    "a",
    "z9",
    "/",
    ".",
    "_",
    "__",
    "-",
    "sha256",
    "sha512",
    ":",
    "0a0a0a0a0a0a0a0a",
    DIGEST,
    ".sig",
    ".att",
    "sha256-0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a",
    "cosign",
    "A",
];

const QUERY: &[&str] = &[
    "kind=",
    "artifactType=",
    "mediaType=",
    "annotation=",
    "inline=",
    "n=",
    "last=",
    "scope=",
    "beyond=",
    "&",
    "&",
    "&",
    "=",
    "reference",
    "subject",
    "true",
    "false",
    "registry",
    "repository",
    "1",
    "0",
    "0123456789abcdef",
    "a/b",
    "%0d%0a",
    "%26",
    "%3D",
    "+",
    "<",
    ">",
    "\"",
    "é",
    "%ff",
    " ",
];

const HEAD: &[&str] = &[
    "connection",
    "te",
    "location",
    "link",
    "www-authenticate",
    "x-hop",
    "keep-alive",
    "upgrade",
    ":",
    ":",
    ":",
    "\n",
    "\n",
    "\n",
    "close",
    ",",
    "trailers",
    "gzip",
    "http://",
    "https://",
    "registry.internal:5000",
    "hub.example.com",
    "/v2/",
    "/base",
    "//",
    "/",
    "<",
    ">",
    "; rel=\"next\"",
    "Bearer realm=\"",
    "\"",
    "@",
    "?",
];

const ATTACHED: &[&str] = &[
    "artifactType=",
    "a/b",
    "application/spdx+json",
    "&",
    "&",
    "&",
    "annotation=",
    "k=",
    "v",
    "%3D",
    "=",
    "title=",
    "x",
    "..",
    "/",
    "%2F",
    "%5C",
    "%00",
    "digest=",
    DIGEST,
    "+",
    " ",
    "%ff",
    "é",
];

const FORM: &[&str] = &[
    "--b0",
    "--b0\r\n",
    "--b0--",
    "\r\n",
    "\r\n",
    "\r\n\r\n",
    "--",
    "Content-Disposition: form-data",
    "; name=\"f\"",
    "; filename=\"a.json\"",
    "; filename=\"../x\"",
    "Content-Type: ",
    "text/plain",
    ": ",
    "x",
    "{}",
    "\n",
    "\r",
    "b0",
    "Content-Disposition: form-data; name=\"f\"; filename=\"a\"\r\n\r\n",
    "--bb",
    "bbbbbbbbbbbb",
];

const CONFIGURATION: &[&str] = &[
    "upstream",
    "url",
    "listen",
    "[",
    "]",
    "upstreams",
    ".",
    "hub",
    "timeouts",
    "connect",
    "references",
    "page_bytes",
    " = ",
    " = ",
    "\n",
    "\n",
    "\"",
    "\"",
    "http://a",
    "https://b:5/c",
    "10s",
    "1MiB",
    "0",
    "true",
    "{",
    "}",
    ",",
    "#",
    "\\n",
    "\\u0007",
    "127.0.0.1:0",
    "prefixes",
    "tls",
    "certificate",
];

/// A JSON value as deep as this, in which members of manifests are likely.
fn manifest_value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just(format!("\"{DIGEST}\"")),
        select(
            &[
                "null",
                "true",
                "7",
                "-1",
                "1.5",
                "1e3",
                "9223372036854775808",
                "\"\"",
                "\"\\u0061/b\"",
                "[]",
                "{}"
            ][..]
        )
        .prop_map(str::to_owned),
        select(
            &[
                "\"application/vnd.oci.image.index.v1+json\"",
                "\"attestation-manifest\"",
                "\"sha256:0\"",
                "\"\\n\""
            ][..]
        )
        .prop_map(str::to_owned),
    ];
    let member = select(
        &[
            "reference",
            "subject",
            "manifests",
            "layers",
            "config",
            "blobs",
            "annotations",
            "mediaType",
            "artifactType",
            "digest",
            "digest",
            "digest",
            "size",
            "vnd.docker.reference.type",
            "vnd.docker.reference.digest",
            "other",
        ][..],
    );
    leaf.prop_recursive(8, 64, 6, move |inner| {
        prop_oneof![
            3 => vec((member.clone(), inner.clone()), 0..6).prop_map(|members| {
                let members: Vec<String> =
                    members.into_iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
                format!("{{{}}}", members.join(", "))
            }),
            1 => vec(inner, 0..4).prop_map(|elements| format!("[{}]", elements.join(","))),
        ]
    })
}

/// The lines of records, one of them perhaps broken.
fn journal() -> impl Strategy<Value = Vec<u8>> {
    let key = format!(r#"{{"upstream":0,"name":"a/b","digest":"{DIGEST}"}}"#);
    let recorded = move |(order, pending, claimed, kind): (u64, bool, bool, &str)| {
        let key = format!(r#"{{"upstream":0,"name":"a/b","digest":"{DIGEST}"}}"#);
        format!(
            r#"{{"recorded":{{"referrer":{key},"order":{order},"pending":{pending},"claimed":{claimed},"descriptor":"{{\n}}","links":[{{"subject":"{DIGEST}","kind":"{kind}"}}]}}}}"#
        )
    };
    let kind = select(&["reference", "subject", "parent", "attestation", "cosign", "fallback", "none"][..]);
    let record = prop_oneof![
        4 => (any::<u64>(), any::<bool>(), any::<bool>(), kind).prop_map(recorded),
        3 => select(&["confirmed", "doubted", "removed"][..])
            .prop_map(move |word| format!(r#"{{"{word}":{key}}}"#)),
        1 => any::<u64>().prop_map(|referrers| format!(r#"{{"end":{{"referrers":{referrers}}}}}"#)),
    ];
    vec(record, 0..6).prop_map(|records| records.join("\n").into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_route_says_what_its_path_says(bytes in after_any_byte(words(PATH))) {
        route(&bytes);
    }

    #[test]
    fn names_come_back_as_they_were_written(bytes in words(NAME)) {
        names(&bytes);
    }

    #[test]
    fn names_and_tags_are_those_of_the_specification(bytes in words(NAME)) {
        let text = String::from_utf8_lossy(&bytes);
        let name = r"^(?-u)[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$";
        let tag = r"^(?-u)[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$";
        let is = |pattern: &str| regex::Regex::new(pattern).unwrap().is_match(&text);
        prop_assert_eq!(text.parse::<RepositoryName>().is_ok(), is(name) && text.len() <= 255);
        prop_assert_eq!(text.parse::<Tag>().is_ok(), is(tag));
    }

    #[test]
    fn the_links_of_a_manifest_do_not_depend_on_how_it_is_written(
        bytes in after_any_byte(manifest_value().prop_map(String::into_bytes))
    ) {
        links(&bytes);
    }

    #[test]
    fn the_next_page_asks_the_same_whatever_is_asked(bytes in words(QUERY)) {
        query(&bytes);
    }

    #[test]
    fn what_is_attached_is_said_in_any_order(bytes in words(ATTACHED)) {
        attach_query(&bytes);
    }

    #[test]
    fn a_form_gives_the_files_that_it_was_made_of(bytes in prop_oneof![words(FORM), vec(any::<u8>(), 0..300)]) {
        attached_files(&bytes);
    }

    #[test]
    fn an_answer_keeps_its_fields_but_those_of_the_connection(bytes in words(HEAD)) {
        headers(&bytes);
    }

    #[test]
    fn a_configuration_is_taken_or_its_mistakes_are_told(bytes in words(CONFIGURATION)) {
        configuration(&bytes);
    }

    #[test]
    fn records_come_back_and_once_more_changes_nothing(bytes in prop_oneof![journal(), words(NAME)]) {
        records(&bytes);
        let frame = [b"noise".to_vec(), bytes].concat();
        records(&frame);
    }

    #[test]
    fn a_sorted_file_gives_what_was_written_or_an_error(bytes in vec(any::<u8>(), 0..600)) {
        sorted(&bytes);
    }

    #[test]
    fn what_a_delta_holds_is_read_as_it_was_written(bytes in vec(any::<u8>(), 0..300)) {
        delta(&bytes);
    }
}
