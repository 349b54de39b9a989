//! kubeconfig: where a cluster's API is, whom it is to trust and who we are.
//!
//! # Source
//! Kubernetes, `client-go/tools/clientcmd/api/v1`, `client.authentication.k8s.io`.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::{Value, json};

/// How long a command may take to print a credential.
const EXEC: Duration = Duration::from_secs(60);
/// Longest credential.
const MAX_CREDENTIAL: u64 = 1 << 20;

/// Everything that a client needs.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Access {
    /// `https://host:port`, perhaps with a path.
    pub(crate) server: String,
    /// Certificates to trust, in PEM; the host's when absent.
    pub(crate) authority: Option<Vec<u8>>,
    /// The name that the server's certificate is for, where it is not the host's.
    pub(crate) server_name: Option<String>,
    /// Certificate and key to show, in PEM.
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Sent with each request.
    pub(crate) token: Option<String>,
    /// Sent with each request too: as whom we want to be seen.
    pub(crate) headers: Vec<(String, String)>,
    /// The context's namespace.
    pub(crate) namespace: Option<String>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // No token and no key in logs.
        f.debug_struct("Access").field("server", &self.server).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: ContextOf,
}

#[derive(Deserialize)]
struct ContextOf {
    cluster: String,
    #[serde(default)]
    user: String,
    namespace: Option<String>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: ClusterOf,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ClusterOf {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    proxy_url: Option<String>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    #[serde(default)]
    user: UserOf,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct UserOf {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    username: Option<String>,
    exec: Option<Exec>,
    auth_provider: Option<Value>,
    #[serde(rename = "as")]
    as_user: Option<String>,
    as_uid: Option<String>,
    #[serde(default)]
    as_groups: Option<Vec<String>>,
    #[serde(default)]
    as_user_extra: Option<BTreeMap<String, Vec<String>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Exec {
    api_version: String,
    command: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    value: String,
}

impl Access {
    /// Reads the file; `context` instead of the current one.
    ///
    /// # Errors
    /// When a file cannot be read, a name leads nowhere, or something is asked for that is not
    /// offered.
    pub(crate) fn read(path: &Path, context: Option<&str>) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        let file: File = serde_saphyr::from_str(&text)
            // Without the lines around it: a token may stand there.
            .map_err(|error| anyhow::anyhow!("{}", error.without_snippet()))
            .with_context(|| format!("{shown} is no kubeconfig"))?;
        let dir = path.parent().unwrap_or(Path::new("."));
        file.access(dir, context).with_context(|| format!("{shown} cannot be used"))
    }
}

impl File {
    fn access(self, dir: &Path, context: Option<&str>) -> anyhow::Result<Access> {
        let wanted = context.unwrap_or(&self.current_context);
        if wanted.is_empty() {
            bail!("it has no current-context; name one with --context");
        }
        let found = self.contexts.into_iter().find(|one| one.name == wanted);
        let context = found.with_context(|| format!("there is no context {wanted:?}"))?.context;
        let found = self.clusters.into_iter().find(|one| one.name == context.cluster);
        let cluster =
            found.with_context(|| format!("there is no cluster {:?}", context.cluster))?.cluster;
        let found = self.users.into_iter().find(|one| one.name == context.user);
        let user = match found {
            Some(found) => found.user,
            None if context.user.is_empty() => UserOf::default(),
            None => bail!("there is no user {:?}", context.user),
        };
        if cluster.insecure_skip_tls_verify {
            bail!("insecure-skip-tls-verify is not offered: give certificate-authority");
        }
        if cluster.proxy_url.is_some() {
            bail!("proxy-url is not offered");
        }
        if !["https://", "http://"].iter().any(|scheme| cluster.server.starts_with(scheme)) {
            bail!("server {:?} begins with neither https:// nor http://", cluster.server);
        }
        let authority = pem(
            dir,
            ("certificate-authority", cluster.certificate_authority.as_deref()),
            cluster.certificate_authority_data.as_deref(),
        )?;
        let headers = user.impersonation()?;
        let (identity, token) = user.identity(dir)?;
        Ok(Access {
            server: cluster.server,
            authority,
            server_name: cluster.tls_server_name,
            identity,
            token,
            headers,
            namespace: context.namespace.filter(|name| !name.is_empty()),
        })
    }
}

/// A key as the end of a header's name: what no name may have, and `%`, by its number.
///
/// # Source
/// client-go `transport/round_trippers.go`; RFC 9110, 5.6.2.
fn escaped(key: &str) -> String {
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
    let each = key.bytes().map(|byte| match byte {
        byte if is_of_name(byte) => char::from(byte.to_ascii_lowercase()).to_string(),
        byte => format!("%{byte:02x}"),
    });
    each.collect()
}

/// Certificate and key, and a token.
type Identity = (Option<(Vec<u8>, Vec<u8>)>, Option<String>);

impl UserOf {
    /// As whom we want to be seen.
    ///
    /// # Source
    /// Kubernetes, *User impersonation*.
    fn impersonation(&self) -> anyhow::Result<Vec<(String, String)>> {
        let groups = self.as_groups.as_deref().unwrap_or_default();
        let extra = self.as_user_extra.iter().flatten();
        let mut all = Vec::new();
        let mut add = |name: String, value: &str| all.push((name, value.to_owned()));
        if let Some(uid) = self.as_uid.as_deref().filter(|uid| !uid.is_empty()) {
            add("impersonate-uid".to_owned(), uid);
        }
        groups.iter().for_each(|group| add("impersonate-group".to_owned(), group));
        for (key, values) in extra {
            let key = escaped(key);
            values.iter().for_each(|value| add(format!("impersonate-extra-{key}"), value));
        }
        match self.as_user.as_deref().filter(|user| !user.is_empty()) {
            Some(user) => all.insert(0, ("impersonate-user".to_owned(), user.to_owned())),
            None if !all.is_empty() => bail!("as-uid, as-groups and as-user-extra need `as`"),
            None => {}
        }
        Ok(all)
    }

    fn identity(self, dir: &Path) -> anyhow::Result<Identity> {
        if self.username.is_some() {
            bail!("username: Kubernetes takes no passwords any more");
        }
        if self.auth_provider.is_some() {
            bail!("auth-provider is not offered: Kubernetes has replaced it by exec");
        }
        if let Some(exec) = self.exec {
            return exec.run(dir);
        }
        let certificate = pem(
            dir,
            ("client-certificate", self.client_certificate.as_deref()),
            self.client_certificate_data.as_deref(),
        )?;
        let key =
            pem(dir, ("client-key", self.client_key.as_deref()), self.client_key_data.as_deref())?;
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => bail!("client-certificate and client-key come together"),
        };
        // The file's token may be a newer one.
        let token = match self.token_file {
            None => self.token,
            Some(file) => {
                let path = dir.join(file);
                let text = std::fs::read_to_string(&path);
                Some(text.with_context(|| format!("cannot read {} (tokenFile)", path.display()))?)
            }
        };
        Ok((identity, token.map(|token| token.trim().to_owned())))
    }
}

impl Exec {
    /// Runs the command, which prints a credential.
    fn run(self, dir: &Path) -> anyhow::Result<Identity> {
        let command = &self.command;
        // With a slash it is a path, from the file's directory on; else it is looked for in $PATH.
        let program = if command.contains('/') { dir.join(command) } else { command.into() };
        let info = json!({
            "apiVersion": self.api_version,
            "kind": "ExecCredential",
            "spec": { "interactive": false },
        });
        let mut run = Command::new(program);
        run.args(self.args.unwrap_or_default()).stdin(Stdio::null()).stderr(Stdio::inherit());
        run.env("KUBERNETES_EXEC_INFO", info.to_string());
        run.envs(self.env.into_iter().flatten().map(|one| (one.name, one.value)));
        let (status, printed) = within(EXEC, run).with_context(|| format!("exec: {command}"))?;
        if !status.success() {
            bail!("exec: {command} failed: {status}");
        }
        let said: Value = serde_json::from_slice(&printed)
            .with_context(|| format!("exec: {command} printed no credential"))?;
        let text = |key: &str| said["status"][key].as_str().map(str::to_owned);
        let identity = text("clientCertificateData").zip(text("clientKeyData"));
        let identity = identity.map(|(cert, key)| (cert.into_bytes(), key.into_bytes()));
        let token = text("token");
        if identity.is_none() && token.is_none() {
            bail!("exec: {command} printed neither a token nor a certificate");
        }
        Ok((identity, token))
    }
}

/// Runs a command to its end; one that takes longer is killed.
fn within(most: Duration, mut command: Command) -> anyhow::Result<(ExitStatus, Vec<u8>)> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot be run")?;
    let pid = Pid::from_child(&child);
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut printed = Vec::new();
        let out = child.stdout.take().expect("it is piped");
        let read = out.take(MAX_CREDENTIAL).read_to_end(&mut printed);
        let done = read.and_then(|_| Ok((child.wait()?, printed)));
        // Whoever waited may have given up.
        let _ = tell.send(done);
    });
    match told.recv_timeout(most) {
        Ok(done) => Ok(done?),
        Err(_) => {
            kill_process(pid, Signal::KILL)?;
            bail!("no credential within {most:?}; it was killed")
        }
    }
}

/// What is there as data, or else in a file.
fn pem(
    dir: &Path,
    (key, file): (&str, Option<&Path>),
    data: Option<&str>,
) -> anyhow::Result<Option<Vec<u8>>> {
    if let Some(data) = data.filter(|data| !data.is_empty()) {
        let bytes = STANDARD.decode(data.trim());
        return bytes.map(Some).with_context(|| format!("{key}-data is not base64"));
    }
    let Some(file) = file.filter(|file| !file.as_os_str().is_empty()) else { return Ok(None) };
    let path = dir.join(file);
    let bytes = std::fs::read(&path);
    bytes.map(Some).with_context(|| format!("cannot read {} ({key})", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(cluster: &str, user: &str, context: Option<&str>) -> Result<Access, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let put =
            |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
        for (name, text) in
            [("ca.crt", "CA"), ("me.crt", "CERT"), ("me.key", "KEY"), ("token", "t-file\n")]
        {
            put(name, text);
        }
        put(
            "kubeconfig",
            &format!(
                "apiVersion: v1\nkind: Config\npreferences: {{}}\ncurrent-context: a\n\
                 contexts:\n- name: a\n  context: {{cluster: c, user: u, namespace: here}}\n\
                 - name: nobody\n  context: {{cluster: c}}\n- name: lost\n  context: {{cluster: d, user: u}}\n\
                 clusters:\n- name: c\n  cluster: {{{cluster}}}\nusers:\n- name: u\n  user: {{{user}}}\n"
            ),
        );
        Access::read(&dir.path().join("kubeconfig"), context).map_err(|error| format!("{error:#}"))
    }

    const SERVER: &str = "server: 'https://h:6443'";

    #[test]
    fn each_form_of_authority_and_user_is_understood() {
        let data = |text: &str| STANDARD.encode(text);
        let ca =
            format!("{SERVER}, certificate-authority-data: {}, tls-server-name: n", data("CA"));
        let access = read(&ca, "token: t-1", None).expect("read");
        let wanted = Access {
            server: "https://h:6443".to_owned(),
            authority: Some(b"CA".to_vec()),
            server_name: Some("n".to_owned()),
            identity: None,
            token: Some("t-1".to_owned()),
            headers: Vec::new(),
            namespace: Some("here".to_owned()),
        };
        assert_eq!(access, wanted);
        assert!(!format!("{access:?}").contains("t-1"), "no token in logs");

        let ca = format!("{SERVER}, certificate-authority: ca.crt");
        let user = "client-certificate: me.crt, client-key: me.key";
        let access = read(&ca, user, None).expect("read");
        let identity = Some((b"CERT".to_vec(), b"KEY".to_vec()));
        assert_eq!((access.authority, &access.identity), (Some(b"CA".to_vec()), &identity));
        let user =
            format!("client-certificate-data: {}, client-key-data: {}", data("CERT"), data("KEY"));
        assert_eq!(read(SERVER, &user, None).expect("read").identity, identity);
        let user = "token: t-1, tokenFile: token";
        assert_eq!(read(SERVER, user, None).expect("read").token.as_deref(), Some("t-file"));
        let access = read("server: 'http://h:1'", "", Some("nobody")).expect("read");
        assert_eq!((access.token, access.identity, access.namespace), (None, None, None));
    }

    #[test]
    fn who_acts_as_somebody_else_says_so() {
        let user = "token: t, as: jo, as-uid: u-1, as-groups: [a, b], \
            as-user-extra: {Acme.com/project: [y], 'b %': [z], why: [x]}";
        let headers = read(SERVER, user, None).expect("read").headers;
        let told: Vec<_> = headers.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let wanted = [
            "impersonate-user=jo",
            "impersonate-uid=u-1",
            "impersonate-group=a",
            "impersonate-group=b",
            "impersonate-extra-acme.com%2fproject=y",
            "impersonate-extra-b%20%25=z",
            "impersonate-extra-why=x",
        ];
        assert_eq!(told, wanted);
        let is_name = |(name, _): &(String, String)| name.parse::<http::HeaderName>().is_ok();
        assert!(headers.iter().all(is_name), "{headers:?}");
        let error = read(SERVER, "as-groups: [a]", None).expect_err("refused");
        assert!(error.contains("need `as`"), "{error}");
    }

    #[test]
    fn a_command_that_prints_nothing_is_killed() {
        let mut command = Command::new("sleep");
        command.arg("600");
        let error = within(Duration::from_millis(50), command).expect_err("it takes too long");
        assert!(error.to_string().contains("killed"), "{error}");
    }

    #[test]
    fn a_command_may_print_the_credential() {
        let exec = |script: &str| {
            format!(
                "exec: {{apiVersion: client.authentication.k8s.io/v1, command: sh, args: ['-c', '{script}'], \
                 env: [{{name: WHO, value: me}}]}}"
            )
        };
        let prints = r#"echo "{\"status\":{\"token\":\"$WHO-${KUBERNETES_EXEC_INFO:+told}\"}}""#;
        let access = read(SERVER, &exec(prints), None).expect("read");
        assert_eq!(access.token.as_deref(), Some("me-told"));
        for (script, said) in
            [("exit 3", "exit status: 3"), ("echo hi", "no credential"), ("echo {}", "neither")]
        {
            let error = read(SERVER, &exec(script), None).expect_err("refused");
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (cluster, user, context, said) in [
            (SERVER, "", Some("other"), "no context \"other\""),
            (SERVER, "", Some("lost"), "no cluster \"d\""),
            ("server: h", "", None, "https://"),
            (
                "server: 'https://h', insecure-skip-tls-verify: true",
                "",
                None,
                "insecure-skip-tls-verify",
            ),
            ("server: 'https://h', proxy-url: 'http://p'", "", None, "proxy-url"),
            ("server: 'https://h', certificate-authority-data: '*'", "", None, "not base64"),
            ("server: 'https://h', certificate-authority: none.crt", "", None, "none.crt"),
            (SERVER, "client-key: me.key", None, "come together"),
            (SERVER, "username: x, password: y", None, "passwords"),
            (SERVER, "auth-provider: {name: gcp}", None, "auth-provider"),
            (SERVER, "tokenFile: nothing", None, "tokenFile"),
            ("certificate-authority: x", "", None, "no kubeconfig"),
        ] {
            let error = read(cluster, user, context).expect_err("refused");
            assert!(error.contains(said), "{error} for {said}");
        }
    }
}
