//! Properties of what is read of a request to attach something, for any bytes.
#![allow(clippy::missing_panics_doc, clippy::expect_used, reason = "a panic is how these report a failure")]

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::HeaderMap;
use http::header::CONTENT_TYPE;

use super::files::{Files, Form};
use super::query::AttachQuery;
use crate::http::body::Body;
use crate::oci::media_type;

const TYPED: &str = "artifactType=a/b";

/// A file as it was read.
type ReadFile = (String, Option<String>, Vec<u8>);

fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && name != ".."
        && name != "."
        && !name.contains(['/', '\\'])
        && !name.contains(char::is_control)
}

/// The parameters of a query.
pub fn attach_query(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(query) = AttachQuery::parse(text) else { return };
    assert!(media_type::is_valid(&query.artifact_type));
    assert!(query.title.as_deref().is_none_or(is_file_name));
    assert!(query.annotations.keys().all(|key| !key.is_empty()));
    // The order of parameters says nothing.
    let turned: Vec<&str> = text.split('&').rev().collect();
    assert_eq!(AttachQuery::parse(&turned.join("&")).ok(), Some(query));
}

/// The files of a body that came with this Content-Type, up to where it is malformed; whether it was not.
fn files(content_type: &str, body: &[u8]) -> Option<(Vec<ReadFile>, bool)> {
    let query = AttachQuery::parse(TYPED).expect("parameters");
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, content_type.parse().expect("a value"));
    let form = Form::of(&headers, &query).ok()?;
    let mut files = Files::of(form, &query, Body::whole(Bytes::copy_from_slice(body)));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let mut found = Vec::new();
        loop {
            let mut file = match files.next().await {
                Ok(Some(file)) => file,
                Ok(None) => return Some((found, true)),
                Err(_) => return Some((found, false)),
            };
            let mut content = Vec::new();
            while let Some(bytes) = file.content.next().await {
                let Ok(bytes) = bytes else { return Some((found, false)) };
                content.extend_from_slice(&bytes);
            }
            found.push((file.media_type, file.title, content));
        }
    })
}

/// A body: of any bytes as a form, and of a form that is made of them.
pub fn attached_files(bytes: &[u8]) {
    let (found, _) = files("multipart/form-data; boundary=b0", bytes).expect("a form");
    let total: usize = found.iter().map(|(.., content)| content.len()).sum();
    assert!(total <= bytes.len());
    for (media_type, title, _) in &found {
        assert!(media_type::is_valid(media_type) && title.as_deref().is_none_or(is_file_name));
    }
    // A boundary that the content does not have: a line of its own would need more bytes.
    let boundary = "b".repeat(bytes.len().min(60) + 10);
    let mut form = Vec::new();
    let (one, other) = bytes.split_at(bytes.len() / 2);
    let contents: Vec<Vec<u8>> = [bytes, one, other].map(<[u8]>::to_vec).into();
    for (number, content) in contents.iter().enumerate() {
        let head = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"f\"; filename=\"f{number}\"\r\n\
             Content-Type: text/x-{number}; charset=x\r\n\r\n"
        );
        form.extend_from_slice(head.as_bytes());
        form.extend_from_slice(content);
        form.extend_from_slice(b"\r\n");
    }
    form.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    if contents.iter().any(|content| content.windows(boundary.len()).any(|part| part == boundary.as_bytes()))
    {
        return;
    }
    let expected = contents.into_iter().enumerate();
    let expected: Vec<ReadFile> = expected
        .map(|(number, content)| (format!("text/x-{number}"), Some(format!("f{number}")), content))
        .collect();
    assert_eq!(files(&format!("multipart/form-data; boundary={boundary}"), &form), Some((expected, true)));
    // As one file it is what it is.
    let single = files("text/plain; charset=x", bytes).expect("a file");
    assert_eq!(single, (vec![("text/plain".to_owned(), None, bytes.to_vec())], true));
}
