//! Decodes content codings (RFC 9110, section 8.4.1) of manifests that refshim reads: some registries and caches
//! compress them unasked (serverless-registry #136). What passes to a client is never changed.

use std::io::Read;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;

/// How many codings one answer may have, since each is decoded in memory.
const MOST_CODINGS: usize = 2;

/// Decodes a body by its `Content-Encoding`; `None` if a coding is unknown, the data is malformed, or the result is
/// longer than `limit`.
#[must_use]
pub fn decode(headers: &HeaderMap, bytes: Bytes, limit: usize) -> Option<Bytes> {
    let named = headers.get_all(CONTENT_ENCODING).into_iter();
    let named: Option<Vec<&str>> = named.map(|value| value.to_str().ok()).collect();
    let named = named?;
    let codings: Vec<&str> = named.iter().flat_map(|value| value.split(',')).map(str::trim).collect();
    if codings.len() > MOST_CODINGS {
        return None;
    }
    // Listed in the order in which they were applied (RFC 9110, section 8.4), so the last is undone first.
    codings.into_iter().rev().try_fold(bytes, |bytes, coding| unpack(coding, bytes, limit))
}

fn unpack(coding: &str, bytes: Bytes, limit: usize) -> Option<Bytes> {
    match coding.to_ascii_lowercase().as_str() {
        "" | "identity" => Some(bytes),
        "gzip" | "x-gzip" => read(flate2::read::MultiGzDecoder::new(&*bytes), limit),
        "deflate" => read(flate2::read::ZlibDecoder::new(&*bytes), limit),
        "zstd" => read(ruzstd::decoding::StreamingDecoder::new(&*bytes).ok()?, limit),
        _ => None,
    }
}

/// Reads up to `limit`: a few compressed bytes may expand to gigabytes.
fn read(packed: impl Read, limit: usize) -> Option<Bytes> {
    let mut bytes = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    packed.take(most).read_to_end(&mut bytes).ok()?;
    (bytes.len() <= limit).then(|| bytes.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use http::HeaderValue;

    use super::*;

    const TEXT: &[u8] = b"{\"schemaVersion\":2}";

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[track_caller]
    fn check(codings: &[&str], bytes: Vec<u8>, limit: usize, expected: Option<&[u8]>) {
        let field = |coding: &&str| (CONTENT_ENCODING, HeaderValue::from_str(coding).unwrap());
        let headers = codings.iter().map(field).fold(HeaderMap::new(), |mut headers, (name, value)| {
            headers.append(name, value);
            headers
        });
        assert_eq!(decode(&headers, bytes.into(), limit).as_deref(), expected, "{codings:?}");
    }

    #[test]
    fn what_was_packed_comes_out_up_to_the_limit() {
        let limit = TEXT.len();
        check(&[], TEXT.to_vec(), limit, Some(TEXT));
        check(&["identity"], TEXT.to_vec(), limit, Some(TEXT));
        check(&["gzip"], gzip(TEXT), limit, Some(TEXT));
        check(&["GZIP"], gzip(TEXT), limit, Some(TEXT));
        check(&["zstd"], zstd(TEXT), limit, Some(TEXT));
        // What comes in between has to be within the limit, too.
        check(&["gzip, zstd"], zstd(&gzip(TEXT)), 1 << 10, Some(TEXT));
        check(&["gzip", "zstd"], zstd(&gzip(TEXT)), 1 << 10, Some(TEXT));
        check(&["gzip"], gzip(TEXT), limit - 1, None);
        check(&["gzip"], gzip(&vec![0; 1 << 20]), 1 << 10, None);
        check(&["gzip"], TEXT.to_vec(), limit, None);
        check(&["zstd"], TEXT.to_vec(), limit, None);
        check(&["br"], TEXT.to_vec(), limit, None);
        check(&["gzip, gzip, gzip"], gzip(&gzip(&gzip(TEXT))), limit, None);
    }
}
