//! Who learns what, and who changes what, before a registry with rights for each repository: a row for each
//! caller, a column for each question, in each cell what came back. The tables are written to the directory
//! of the test's artefacts as Markdown.

use std::fmt::Write as _;
use std::path::Path;

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::referrers::signature;
use crate::support::postgres::Postgres;
use crate::support::{Client, Content, IMAGE_MANIFEST, Refshim, Registry, Rules, TokenService, digest_of};

/// What refers to a manifest, in the cells: `1` the one link, `0` an empty list; else the status.
const LEARNT: &str = "\
| caller | pull | by digest | by tag | tag unknown | digest unknown | inline | HEAD | Range | n=1 | from the first | from the last | referrers | from elsewhere | elsewhere alone | public |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
| owner | 200 | 1 | 1 | 404 | 0 | 1 | 200 | 1 | 1 | 1 | 0 | 1 | 1 | 0 | 1 |
| reader | 200 | 1 | 1 | 404 | 0 | 1 | 200 | 1 | 1 | 1 | 0 | 1 | 1 | 0 | 1 |
| push alone | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 |
| delete alone | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 |
| another repository | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 0 | 0 | 1 |
| a name that begins alike | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 |
| the catalog | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 |
| no right | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 |
| a forged token | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 |
| the owner's password | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 |
| nobody | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 |
| nobody, with a token | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 0 | 0 | 1 |
";

/// What the web page shows, with the same credentials: `1` the one link, `0` a page without it; else the status. The
/// owner's password is as good as the owner's tokens: the page asks the token service with it.
const SHOWN: &str = "\
| caller | attached | by tag | graph | details | coverage | tag unknown | digest unknown | elsewhere | public |
|---|---|---|---|---|---|---|---|---|---|
| owner | 1 | 1 | 1 | 1 | 0 | 404 | 404 | 404 | 0 |
| reader | 1 | 1 | 1 | 1 | 0 | 404 | 404 | 404 | 0 |
| push alone | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 |
| delete alone | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 |
| another repository | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 404 | 0 |
| a name that begins alike | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 |
| the catalog | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 |
| no right | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 |
| a forged token | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 |
| the owner's password | 1 | 1 | 1 | 1 | 0 | 404 | 404 | 404 | 0 |
| nobody | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 404 | 0 |
| nobody, with a token | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 404 | 0 |
| another's password | 403 | 403 | 403 | 403 | 403 | 403 | 403 | 404 | 0 |
| a wrong password | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 | 401 |
";

/// The status of a write, and whether the owner's list has the link afterwards.
const CHANGED: &str = "\
| caller | PUT of a referrer | PUT of a known one to a cosign tag | DELETE of the referrer | DELETE of the subject | attach | detach |
|---|---|---|---|---|---|---|
| owner | 201 listed | 201 listed | 202 not listed | 202 listed | 201 listed | 202 not listed |
| reader | 401 not listed | 401 not listed | 401 listed | 401 listed | 401 not listed | 401 listed |
| push alone | 401 not listed | 401 not listed | 401 listed | 401 listed | 401 not listed | 401 listed |
| delete alone | 401 not listed | 401 not listed | 202 not listed | 202 listed | 401 not listed | 401 listed |
| another repository | 401 not listed | 401 not listed | 401 listed | 401 listed | 401 not listed | 401 listed |
| a name that begins alike | 401 not listed | 401 not listed | 401 listed | 401 listed | 401 not listed | 401 listed |
| the catalog | 401 not listed | 401 not listed | 401 listed | 401 listed | 401 not listed | 401 listed |
| no right | 401 not listed | 401 not listed | 401 listed | 401 listed | 401 not listed | 401 listed |
| a forged token | 401 not listed | 401 not listed | 401 listed | 401 listed | 401 not listed | 401 listed |
| the owner's password | 401 not listed | 401 not listed | 401 listed | 401 listed | 401 not listed | 401 listed |
| nobody | 401 not listed | 401 not listed | 401 listed | 401 listed | 401 not listed | 401 listed |
| nobody, with a token | 401 not listed | 401 not listed | 401 listed | 401 listed | 401 not listed | 401 listed |
";

struct Scene {
    refshim: Refshim,
    registry: Registry,
    service: TokenService,
    owner: Client,
    _directory: tempfile::TempDir,
}

/// With the index in this database, if there is one.
async fn scene(index: Option<&Postgres>) -> Scene {
    let service = Rules::default()
        .user("alice", "password")
        .user("bob", "password")
        .grant("alice", "repository:private", "pull,push,delete")
        .grant("alice", "repository:privates", "pull")
        .grant("alice", "repository:public", "pull,push")
        .grant("alice", "registry:catalog", "*")
        .grant("bob", "repository:public", "pull")
        .grant_anonymous("repository:public", "pull")
        .start();
    let registry = Registry::variant().tokens_of(&service).start();
    let directory = tempfile::tempdir().unwrap();
    let refshim = Refshim::before(&registry, directory.path()).with_index(index).with_web().launch().await;
    let all = ["repository:private:pull,push,delete", "repository:public:pull,push"];
    let owner = refshim.client().with_token(&service.token(Some("alice"), &all).await);
    Scene { refshim, registry, service, owner, _directory: directory }
}

impl Scene {
    /// An image of the repository, tagged, and a manifest that refers to it.
    async fn signed(&self, repository: &str) -> (Content, Content) {
        let image = self.owner.image(repository, repository).await;
        self.owner.push_as(repository, "latest", &image).await;
        let signature = signature(&image, &image, "application/x", "signature");
        self.owner.push(repository, &signature).await;
        (image, signature)
    }

    /// The rows of the tables, but the owner.
    async fn callers(&self) -> Vec<(&'static str, Client)> {
        let client = self.refshim.client();
        let token = async |user: Option<&str>, scopes: &[&str]| {
            client.with_token(&self.service.token(user, scopes).await)
        };
        let alices = self.service.token(Some("alice"), &["repository:private:pull,push,delete"]).await;
        let (claims, signature) = alices.rsplit_once('.').unwrap();
        let forged = format!("{claims}.{}", signature.chars().rev().collect::<String>());
        let alice = Some("alice");
        vec![
            ("reader", token(alice, &["repository:private:pull", "repository:public:pull"]).await),
            ("push alone", token(alice, &["repository:private:push"]).await),
            ("delete alone", token(alice, &["repository:private:delete"]).await),
            ("another repository", token(alice, &["repository:public:pull,push"]).await),
            ("a name that begins alike", token(alice, &["repository:privates:pull"]).await),
            ("the catalog", token(alice, &["registry:catalog:*"]).await),
            ("no right", token(Some("bob"), &["repository:private:pull,push,delete"]).await),
            ("a forged token", client.with_token(&forged)),
            ("the owner's password", client.as_user("alice", "password")),
            ("nobody", client.clone()),
            (
                "nobody, with a token",
                token(None, &["repository:private:pull", "repository:public:pull"]).await,
            ),
        ]
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Write {
    Put,
    PutAtTag,
    Delete,
    DeleteSubject,
    Attach,
    Detach,
}

impl Write {
    const ALL: [(&str, Self); 6] = [
        ("PUT of a referrer", Self::Put),
        ("PUT of a known one to a cosign tag", Self::PutAtTag),
        ("DELETE of the referrer", Self::Delete),
        ("DELETE of the subject", Self::DeleteSubject),
        ("attach", Self::Attach),
        ("detach", Self::Detach),
    ];
}

struct Question {
    name: &'static str,
    method: Method,
    path: String,
    range: Option<&'static str>,
}

fn questions(private: &Content, public: &Content) -> Vec<Question> {
    let (digest, unknown) = (&private.digest, digest_of(b"unknown"));
    let question = |name, path| Question { name, method: Method::GET, path, range: None };
    let of = |name, reference: &str, query| {
        question(name, format!("/v2/private/manifests/{reference}/references{query}"))
    };
    vec![
        question("pull", format!("/v2/private/manifests/{digest}")),
        of("by digest", digest, ""),
        of("by tag", "latest", ""),
        of("tag unknown", "none", ""),
        of("digest unknown", &unknown, ""),
        of("inline", digest, "?inline=true"),
        Question { method: Method::HEAD, ..of("HEAD", digest, "?inline=true") },
        Question { range: Some("bytes=0-99"), ..of("Range", digest, "") },
        of("n=1", digest, "?n=1"),
        of("from the first", digest, "?last=0000000000000000"),
        of("from the last", digest, "?last=ffffffffffffffff"),
        question("referrers", format!("/v2/private/referrers/{digest}")),
        question("from elsewhere", format!("/v2/public/manifests/{digest}/references?scope=registry")),
        question("elsewhere alone", format!("/v2/public/manifests/{digest}/references")),
        question("public", format!("/v2/public/manifests/{}/references", public.digest)),
    ]
}

/// The path of the pull that the registry demands the same of as refshim of the question.
fn like_pull(path: &str) -> String {
    let repository = path.split('/').nth(2).unwrap();
    format!("/v2/{repository}/manifests/{}", digest_of(b"unknown"))
}

impl Scene {
    /// Asks, and sees to it that nothing but a list tells of `secret`, and that a refusal is the registry's.
    async fn learnt(&self, caller: &Client, question: &Question, secret: &str) -> String {
        let Question { name, method, path, range } = question;
        let mut request = caller.request(method.clone(), path).header("accept", IMAGE_MANIFEST);
        if let Some(range) = range {
            request = request.header("range", *range);
        }
        let answer = caller.send(request).await;
        let text = String::from_utf8(answer.body.clone()).unwrap();
        if answer.status == StatusCode::UNAUTHORIZED {
            let like = self.registry.client().get(&like_pull(path)).await;
            let challenge = |header: &str| header.split(",error=").next().unwrap().to_owned();
            let expected = challenge(like.header("www-authenticate"));
            assert_eq!(challenge(answer.header("www-authenticate")), expected, "{name}");
        }
        if answer.status != StatusCode::OK || *method == Method::HEAD || *name == "pull" {
            assert!(!text.contains(secret) && answer.headers.get("link").is_none(), "{name}: {answer:?}");
            return answer.status.as_u16().to_string();
        }
        let manifests = answer.json()["manifests"].as_array().unwrap().len();
        assert!(manifests > 0 || !text.contains(secret), "{name}: {text}");
        assert_eq!(text.contains("\"data\":"), manifests > 0 && path.contains("inline"), "{name}: {text}");
        manifests.to_string()
    }

    /// Does something to what the owner pushed for this cell, and tells what came of it.
    async fn changed(&self, caller: &Client, write: Write, cell: &str, image: &Content) -> String {
        let subject = image.changed(|manifest| manifest["annotations"] = json!({"subject of": cell}));
        let referrer = signature(&subject, image, "application/x", cell);
        self.owner.push("private", &subject).await;
        if !matches!(write, Write::Put | Write::Attach) {
            self.owner.push("private", &referrer).await;
        }
        let path = |content: &Content| format!("/v2/private/manifests/{}", content.digest);
        let mut asked_about = subject.digest.clone();
        let answer = match write {
            Write::Put => caller.put_manifest("private", &referrer.digest, &referrer).await,
            Write::PutAtTag => {
                asked_about = digest_of(cell.as_bytes());
                let tag = format!("{}.sig", asked_about.replace(':', "-"));
                caller.put_manifest("private", &tag, &referrer).await
            }
            Write::Delete => caller.delete(&path(&referrer)).await,
            Write::DeleteSubject => caller.delete(&path(&subject)).await,
            Write::Attach => {
                let path = format!("{}/references?artifactType=application/x", path(&subject));
                let request = caller.request(Method::POST, &path).header("content-type", "text/plain");
                caller.send(request.body(cell.to_owned())).await
            }
            Write::Detach => {
                caller.delete(&format!("{}/references/{}", path(&subject), referrer.digest)).await
            }
        };
        let expected = match write {
            Write::Attach if answer.status == StatusCode::CREATED => answer.header("docker-content-digest"),
            Write::Put
            | Write::PutAtTag
            | Write::Delete
            | Write::DeleteSubject
            | Write::Attach
            | Write::Detach => &referrer.digest,
        };
        let listed = self.owner.referrers("private", &asked_about, "").await;
        let listed = match &listed[..] {
            [] => "not listed",
            [one] if one == expected => "listed",
            _ => panic!("{cell}: {listed:?}"),
        };
        format!("{} {listed}", answer.status.as_u16())
    }
}

/// A table in the making, and what it is to be.
fn check(name: &str, table: &str, expected: &str) {
    std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name), table).unwrap();
    assert_eq!(table, expected);
}

fn head<'a>(columns: impl Iterator<Item = &'a str>) -> String {
    let columns: Vec<&str> = columns.collect();
    format!("| caller | {} |\n|---|{}\n", columns.join(" | "), "---|".repeat(columns.len()))
}

#[tokio::test]
async fn each_caller_learns_what_the_registry_lets_it_read_and_nothing_else() {
    learns("access-learnt.md", None).await;
}

#[tokio::test]
async fn each_caller_learns_the_same_with_the_index_in_postgresql() {
    learns("access-learnt-postgresql.md", Some(&Postgres::start_fast())).await;
}

async fn learns(file: &str, index: Option<&Postgres>) {
    let scene = scene(index).await;
    let (image, referrer) = scene.signed("private").await;
    let (public, _) = scene.signed("public").await;
    let questions = questions(&image, &public);
    let mut table = head(questions.iter().map(|question| question.name));
    // The owner first: what is remembered of one helps no other.
    let mut callers = scene.callers().await;
    callers.insert(0, ("owner", scene.owner.clone()));
    for (name, caller) in &callers {
        write!(table, "| {name} |").unwrap();
        for question in &questions {
            let learnt = scene.learnt(caller, question, &referrer.digest).await;
            write!(table, " {learnt} |").unwrap();
        }
        table.push('\n');
    }
    assert_eq!(scene.owner.referrers("private", "latest", "").await, [referrer.digest]);
    check(file, &table, LEARNT);
}

/// The addresses of the pages that SHOWN has a column for.
fn pages(image: &Content, referrer: &Content, public: &Content) -> Vec<(&'static str, String)> {
    let of =
        |page: &str, image: &str, target: &str| format!("/registry/default/{page}?image={image}{target}");
    let at = |content: &Content| format!("@{}", content.digest);
    let unknown = format!("@{}", digest_of(b"unknown"));
    vec![
        ("attached", of("image", "private", &at(image))),
        ("by tag", of("image", "private", ":latest")),
        ("graph", of("graph", "private", &at(image))),
        ("details", of("referrer", "private", &at(referrer))),
        ("coverage", of("coverage", "private", ":latest")),
        ("tag unknown", of("image", "private", ":none")),
        ("digest unknown", of("image", "private", &unknown)),
        ("elsewhere", of("image", "public", &at(image))),
        ("public", of("image", "public", &at(public))),
    ]
}

#[tokio::test]
async fn each_visitor_of_the_web_page_is_shown_what_the_registry_lets_them_read_and_nothing_else() {
    let scene = scene(None).await;
    let (image, referrer) = scene.signed("private").await;
    let (public, _) = scene.signed("public").await;
    let pages = pages(&image, &referrer, &public);
    let mut table = head(pages.iter().map(|(name, _)| *name));
    let mut callers = scene.callers().await;
    callers.insert(0, ("owner", scene.owner.clone()));
    callers.push(("another's password", scene.refshim.client().as_user("bob", "password")));
    callers.push(("a wrong password", scene.refshim.client().as_user("alice", "wrong")));
    // As it is shown in short.
    let secret = &referrer.digest["sha256:".len()..][..12];
    for (name, caller) in &callers {
        write!(table, "| {name} |").unwrap();
        for (page, path) in &pages {
            let answer = caller.get(&scene.refshim.web_url(path)).await;
            let text = String::from_utf8(answer.body.clone()).unwrap();
            let is_told = text.contains(secret);
            let asks = answer.headers.get("www-authenticate").is_some();
            assert_eq!(asks, answer.status == StatusCode::UNAUTHORIZED, "{name}, {page}: {answer:?}");
            let cell = match answer.status {
                StatusCode::OK => u8::from(is_told).to_string(),
                status => {
                    // What they asked for stands in no address of a page that does not show it.
                    assert!(*page == "details" || !is_told, "{name}, {page}: {text}");
                    status.as_u16().to_string()
                }
            };
            write!(table, " {cell} |").unwrap();
        }
        table.push('\n');
    }
    check("access-shown.md", &table, SHOWN);
}

#[tokio::test]
async fn each_caller_changes_what_the_registry_lets_it_write_and_nothing_else() {
    changes("access-changed.md", None).await;
}

#[tokio::test]
async fn each_caller_changes_the_same_with_the_index_in_postgresql() {
    changes("access-changed-postgresql.md", Some(&Postgres::start_fast())).await;
}

async fn changes(file: &str, index: Option<&Postgres>) {
    let scene = scene(index).await;
    let (image, _) = scene.signed("private").await;
    let mut table = head(Write::ALL.iter().map(|(name, _)| *name));
    let mut callers = scene.callers().await;
    callers.insert(0, ("owner", scene.owner.clone()));
    for (name, caller) in &callers {
        write!(table, "| {name} |").unwrap();
        for (question, kind) in Write::ALL {
            let changed = scene.changed(caller, kind, &format!("{name}, {question}"), &image).await;
            write!(table, " {changed} |").unwrap();
        }
        table.push('\n');
    }
    check(file, &table, CHANGED);
}
