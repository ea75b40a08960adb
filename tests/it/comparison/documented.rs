//! What is not the same, as the API reference says: what refshim answers by itself, and what it adds.

use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE};
use reqwest::{Method, RequestBuilder};
use serde_json::json;

use super::side::Side;
use crate::support::{Answer, Content, Http, IMAGE_INDEX};

/// A request, and of each answer the status and the fields that the other does not have.
type Row = [String; 3];

/// All that differs.
pub(super) fn documented() -> Vec<Row> {
    let unknown = "404 content-type: text/plain; charset=utf-8 docker-distribution-api-version: registry/2.0 \
                   x-content-type-options: nosniff";
    let may_miss = "warning: 299 - \"refshim: links pushed before TIME may be missing (refshim backfill)\"";
    let index = &format!("200 content-type: {IMAGE_INDEX} {may_miss} x-request-id: ID")[..];
    [
        ["GET /v2/", "200", "200 x-request-id: ID"],
        [
            "POST of an upload",
            "202 location: http://HOST/v2/a/blobs/uploads/UUID?_state=STATE",
            "202 location: /v2/a/blobs/uploads/UUID?_state=STATE x-request-id: ID",
        ],
        [
            "PUT of a manifest with a subject",
            "201 location: http://HOST/v2/a/manifests/REFERRER",
            "201 location: /v2/a/manifests/REFERRER oci-subject: SUBJECT x-request-id: ID",
        ],
        [
            "PUT of a manifest with a malformed subject",
            "201 location: http://HOST/v2/a/manifests/MALFORMED",
            "201 location: /v2/a/manifests/MALFORMED warning: 299 - \"refshim: malformed links are not recorded: \
             subject: neither a descriptor nor a list of descriptors\" x-request-id: ID",
        ],
        ["GET of referrers", unknown, index],
        ["GET of references", unknown, index],
    ]
    .map(|row| row.map(str::to_owned))
    .to_vec()
}

/// What the two sides say where they differ.
pub(super) async fn rows(alone: &Side, through: &Side) -> Vec<Row> {
    let (alone, through) = (answers(alone).await, answers(through).await);
    let rows = alone.into_iter().zip(through);
    rows.map(|((what, alone), (_, through))| [what, alone.apart_from(&through), through.apart_from(&alone)])
        .collect()
}

struct Said {
    status: String,
    fields: Vec<String>,
}

impl Said {
    fn apart_from(&self, other: &Self) -> String {
        let only = self.fields.iter().filter(|field| !other.fields.contains(field));
        std::iter::once(&self.status).chain(only).map(String::as_str).collect::<Vec<_>>().join(" ")
    }
}

async fn answers(side: &Side) -> Vec<(String, Said)> {
    let client = side.client(Http::One);
    let subject = client.image("a", "documented").await;
    client.push_as("a", "v1", &subject).await;
    let referrer = subject.changed(|manifest| manifest["subject"] = subject.descriptor());
    let malformed = subject.changed(|manifest| manifest["subject"] = json!("none"));
    let put = |content: &Content| {
        let put = client.request(Method::PUT, &format!("/v2/a/manifests/{}", content.digest));
        put.header(CONTENT_TYPE, &content.media_type).body(content.bytes.clone())
    };
    let requests: [(&str, RequestBuilder); 6] = [
        ("GET /v2/", client.request(Method::GET, "/v2/")),
        ("POST of an upload", client.request(Method::POST, "/v2/a/blobs/uploads/")),
        ("PUT of a manifest with a subject", put(&referrer)),
        ("PUT of a manifest with a malformed subject", put(&malformed)),
        ("GET of referrers", client.request(Method::GET, &format!("/v2/a/referrers/{}", subject.digest))),
        ("GET of references", client.request(Method::GET, "/v2/a/manifests/v1/references")),
    ];
    let names = [(&subject, "SUBJECT"), (&referrer, "REFERRER"), (&malformed, "MALFORMED")];
    let mut answers = Vec::new();
    for (what, request) in requests {
        answers.push((what.to_owned(), said(side, &client.send(request).await, &names)));
    }
    answers
}

fn said(side: &Side, answer: &Answer, names: &[(&Content, &str)]) -> Said {
    let compared = answer.headers.iter().filter(|(name, _)| ![CONTENT_LENGTH, DATE].contains(name));
    let fields = compared.map(|(name, value)| {
        let value = if name == "x-request-id" { "ID" } else { value.to_str().unwrap() };
        let time = regex::Regex::new("pushed before [^ ]+ may").unwrap();
        let value = time.replace(value, "pushed before TIME may");
        let field = format!("{name}: {}", side.normal().text(&value));
        names.iter().fold(field, |field, (content, name)| field.replace(&content.digest, name))
    });
    let mut fields: Vec<String> = fields.collect();
    fields.sort();
    Said { status: answer.status.as_str().to_owned(), fields }
}
