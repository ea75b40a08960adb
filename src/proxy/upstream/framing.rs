//! How long an answer is, told one way. What a client, or something in front of it, may read another way than
//! refshim did could be made into two answers (RFC 9112, sections 6.3 and 11.1).

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue};

/// The answer does not tell clearly where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFraming {
    /// Its lengths differ, or one is no number.
    #[error("the registry's answer has an invalid Content-Length")]
    Length,
    /// It has a transfer coding that refshim does not undo.
    #[error("the registry's answer has an invalid Transfer-Encoding")]
    Coding,
}

/// Leaves one length, or none beside a transfer coding, which comes before it.
///
/// # Errors
/// The lengths contradict each other, or the body cannot be read.
pub(super) fn unify(headers: &mut HeaderMap) -> Result<(), InvalidFraming> {
    if headers.contains_key(TRANSFER_ENCODING) {
        if !elements(headers, &TRANSFER_ENCODING).eq(["chunked"]) {
            return Err(InvalidFraming::Coding);
        }
        headers.remove(CONTENT_LENGTH);
        return Ok(());
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else { return Ok(()) };
    if lengths.next().is_none() && length(first.as_bytes()).is_some() {
        return Ok(());
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter().flat_map(|value| {
        value.as_bytes().split(|byte| *byte == b',').map(|element| length(element.trim_ascii()))
    });
    let first = lengths.next().flatten().ok_or(InvalidFraming::Length)?;
    if lengths.any(|length| length != Some(first)) {
        return Err(InvalidFraming::Length);
    }
    headers.insert(CONTENT_LENGTH, HeaderValue::from(first));
    Ok(())
}

/// Digits and nothing else; Rust's own parser would take a sign as well.
fn length(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()
}

/// The elements of a list, in lower case.
fn elements(headers: &HeaderMap, name: &http::HeaderName) -> impl Iterator<Item = String> {
    let values = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?"));
    values.flat_map(|value| value.split(',')).map(|element| element.trim().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, values: &[&str], expected: Result<Option<&str>, InvalidFraming>) {
        let name: http::HeaderName = name.parse().unwrap();
        let mut headers: HeaderMap = [(CONTENT_LENGTH, HeaderValue::from(7))].into_iter().collect();
        if name == CONTENT_LENGTH {
            headers.clear();
        }
        for value in values {
            headers.append(&name, value.parse().unwrap());
        }
        let unified = unify(&mut headers);
        let lengths: Vec<_> = headers.get_all(CONTENT_LENGTH).iter().map(|it| it.to_str().unwrap()).collect();
        match (unified, expected) {
            (Ok(()), Ok(expected)) => assert_eq!(lengths, Vec::from_iter(expected), "{name} {values:?}"),
            (unified, expected) => assert_eq!(unified, expected.map(|_| ()), "{name} {values:?}"),
        }
    }

    #[test]
    fn lengths_that_agree_are_one_and_others_are_none() {
        let invalid = Err(InvalidFraming::Length);
        for (values, expected) in [
            (&["5"][..], Ok(Some("5"))),
            (&["5, 5"], Ok(Some("5"))),
            (&["5,5", "5"], Ok(Some("5"))),
            (&["5", "5"], Ok(Some("5"))),
            (&["5, 6"], invalid),
            (&["5", "6"], invalid),
            (&["5,"], invalid),
            (&["+5"], invalid),
            (&["-5"], invalid),
            (&["0x5"], invalid),
            (&["5 5"], invalid),
            (&["", "5"], invalid),
            (&["18446744073709551616"], invalid),
        ] {
            check("content-length", values, expected);
        }
    }

    #[test]
    fn chunks_come_before_a_length_and_no_other_coding_is_known() {
        let invalid = Err(InvalidFraming::Coding);
        check("transfer-encoding", &["chunked"], Ok(None));
        check("transfer-encoding", &["Chunked"], Ok(None));
        for values in
            [&["gzip, chunked"][..], &["chunked, chunked"], &["chunked", "chunked"], &["gzip"], &["xchunked"]]
        {
            check("transfer-encoding", values, invalid);
        }
    }
}
