//! A token service as docker-registry's `auth: token` wants it: signed JWTs (RS256, the certificate in
//! `x5c`) for as much of the scope asked for as the user has rights to, by GET with Basic
//! credentials and by the OAuth POST with passwords and refresh tokens.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, DnType, KeyPair, SigningKey as _};
use serde_json::{Value, json};

use super::Client;

/// What the registry calls itself towards the service.
pub(crate) const SERVICE: &str = "registry of the test";
pub(crate) const ISSUER: &str = "token service of the test";

/// A service on a port of the system's choice; it ends with the test's process.
pub(crate) struct TokenService {
    address: SocketAddr,
    shared: Arc<Shared>,
    directory: tempfile::TempDir,
}

/// Who may do what.
#[derive(Default)]
pub(crate) struct Rules {
    passwords: BTreeMap<String, String>,
    grants: Vec<Grant>,
}

struct Grant {
    user: Option<String>,
    resource: String,
    actions: Vec<String>,
}

/// A request for a token, as it was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenRequest {
    pub(crate) method: Method,
    /// Who proved to be whom; nobody if no credentials were shown.
    pub(crate) user: Option<String>,
    pub(crate) service: String,
    pub(crate) scopes: Vec<String>,
    /// `password` or `refresh_token`, of a POST.
    pub(crate) grant_type: Option<String>,
}

struct Shared {
    rules: Rules,
    key: KeyPair,
    certificate: Vec<u8>,
    requests: Mutex<Vec<TokenRequest>>,
}

impl Rules {
    pub(crate) fn user(mut self, name: &str, password: &str) -> Self {
        self.passwords.insert(name.to_owned(), password.to_owned());
        self
    }

    /// Gives a user `pull,push` on `repository:a/b`; `repository:*` is every repository.
    pub(crate) fn grant(self, user: &str, resource: &str, actions: &str) -> Self {
        self.add(Some(user.to_owned()), resource, actions)
    }

    /// Gives the same to whoever shows no credentials.
    pub(crate) fn grant_anonymous(self, resource: &str, actions: &str) -> Self {
        self.add(None, resource, actions)
    }

    fn add(mut self, user: Option<String>, resource: &str, actions: &str) -> Self {
        let actions = actions.split(',').map(str::to_owned).collect();
        self.grants.push(Grant { user, resource: resource.to_owned(), actions });
        self
    }

    pub(crate) fn start(self) -> TokenService {
        TokenService::start(self)
    }

    /// The part of `type:name:actions` that the user has rights to.
    fn allowed(&self, user: Option<&str>, scope: &str) -> Option<Value> {
        let (resource, asked) = scope.rsplit_once(':')?;
        let (kind, name) = resource.split_once(':')?;
        let grants = self.grants.iter().filter(|grant| {
            grant.user.as_deref() == user
                && (grant.resource == resource || grant.resource == format!("{kind}:*"))
        });
        let granted: Vec<&str> = grants.flat_map(|grant| &grant.actions).map(String::as_str).collect();
        let actions: Vec<&str> = asked.split(',').filter(|action| granted.contains(action)).collect();
        Some(json!({"type": kind, "name": name, "actions": actions}))
    }
}

impl TokenService {
    fn start(rules: Rules) -> Self {
        let key = KeyPair::from_pem(&rsa_key()).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, ISSUER);
        let certificate = params.self_signed(&key).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let shared =
            Shared { rules, key, certificate: certificate.der().to_vec(), requests: Mutex::default() };
        let shared = Arc::new(shared);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let service = Self { address, shared: Arc::clone(&shared), directory };
        std::fs::write(service.certificate(), certificate.pem()).unwrap();
        // A thread of its own, so that a test that waits for a child process does not stop it.
        std::thread::spawn(move || serve(listener, &shared));
        service
    }

    /// Where tokens are asked for.
    pub(crate) fn realm(&self) -> String {
        format!("http://{}/token", self.address)
    }

    /// A client of the service, which knows it at `/token`.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// A token for as much of these scopes as the user, or whoever shows no credentials, has rights to.
    pub(crate) async fn token(&self, user: Option<&str>, scopes: &[&str]) -> String {
        let client = match user {
            Some(user) => self.client().as_user(user, &self.shared.rules.passwords[user]),
            None => self.client(),
        };
        let answer = client.get(&format!("/token?service=x&scope={}", scopes.join("&scope="))).await;
        answer.json()["token"].as_str().unwrap().to_owned()
    }

    /// The certificate that the registry checks signatures by.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.directory.path().join("token.crt")
    }

    /// What it was asked so far.
    pub(crate) fn requests(&self) -> Vec<TokenRequest> {
        self.shared.requests.lock().unwrap().clone()
    }
}

/// A key that neither ring nor rcgen with it can make, but use.
fn rsa_key() -> String {
    let openssl = Command::new("openssl")
        .args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
        .output()
        .expect("openssl");
    String::from_utf8(openssl.stdout).unwrap()
}

fn serve(listener: TcpListener, shared: &Arc<Shared>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            let shared = Arc::clone(shared);
            let service = hyper::service::service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(shared.answer(request).await) }
            });
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    println!("token service: {error}");
                }
            });
        }
    });
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let basic = head.headers.get(AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
        let body = body.collect().await.unwrap().to_bytes();
        let text =
            if head.method == Method::POST { &body[..] } else { head.uri.query().unwrap_or("").as_bytes() };
        let fields: Vec<(String, String)> = form_urlencoded::parse(text).into_owned().collect();
        let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let known = match (&head.method, head.uri.path()) {
            (&Method::GET, "/token") => basic.map(|basic| self.by_password(user_and_password(&basic))),
            (&Method::POST, "/token") => Some(match field("grant_type").as_deref() {
                Some("password") => self.by_password(field("username").zip(field("password"))),
                Some("refresh_token") => {
                    field("refresh_token").and_then(|token| self.by_refresh_token(&token))
                }
                _ => None,
            }),
            _ => return json_answer(StatusCode::NOT_FOUND, &json!({"details": "no such page"})),
        };
        let Some(user) = known.map_or(Some(None), |known| known.map(Some)) else {
            return json_answer(
                StatusCode::UNAUTHORIZED,
                &json!({"details": "incorrect username or password"}),
            );
        };
        let scopes = fields.iter().filter(|(key, _)| key == "scope");
        let scopes = scopes.flat_map(|(_, value)| value.split_whitespace()).map(str::to_owned);
        let asked = TokenRequest {
            method: head.method,
            user,
            service: field("service").unwrap_or_default(),
            scopes: scopes.collect(),
            grant_type: field("grant_type"),
        };
        let token = self.token(asked.user.as_deref(), &asked.scopes);
        let mut answer = json!({
            "token": token, "access_token": token, "expires_in": 300, "issued_at": "2026-01-01T00:00:00Z",
            "scope": asked.scopes.join(" "),
        });
        let stays = field("offline_token").as_deref() == Some("true") || asked.grant_type.is_some();
        if let (true, Some(user)) = (stays, &asked.user) {
            answer["refresh_token"] = json!(refresh_token(user));
        }
        self.requests.lock().unwrap().push(asked);
        json_answer(StatusCode::OK, &answer)
    }

    fn by_password(&self, claimed: Option<(String, String)>) -> Option<String> {
        let (user, password) = claimed?;
        (self.rules.passwords.get(&user) == Some(&password)).then_some(user)
    }

    fn by_refresh_token(&self, token: &str) -> Option<String> {
        self.rules.passwords.keys().find(|user| refresh_token(user) == token).cloned()
    }

    fn token(&self, user: Option<&str>, scopes: &[String]) -> String {
        let access: Vec<Value> = scopes.iter().filter_map(|scope| self.rules.allowed(user, scope)).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let seconds = |time: Duration| time.as_secs();
        let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [STANDARD.encode(&self.certificate)]});
        let claims = json!({
            "iss": ISSUER, "sub": user.unwrap_or(""), "aud": SERVICE, "jti": format!("{}", now.as_nanos()),
            "iat": seconds(now), "nbf": seconds(now) - 60, "exp": seconds(now) + 300, "access": access,
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(signed.as_bytes()).unwrap());
        format!("{signed}.{signature}")
    }
}

fn refresh_token(user: &str) -> String {
    format!("identity-of-{user}")
}

fn user_and_password(basic: &str) -> Option<(String, String)> {
    let decoded = String::from_utf8(STANDARD.decode(basic.strip_prefix("Basic ")?).ok()?).ok()?;
    decoded.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}

fn json_answer(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let answer = Response::builder().status(status).header(CONTENT_TYPE, "application/json");
    answer.body(Full::new(Bytes::from(body.to_string()))).unwrap()
}
