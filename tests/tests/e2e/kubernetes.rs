//! Real clients of Kubernetes against a node: kubectl of several versions, and the Python client.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use vhive_tests::node::TestNode;

use crate::scene::{Dir, node, service, skip};

/// What `xtask test` brings for these tests.
fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools")
}

/// A kubectl with a name for messages.
struct Kubectl<'a> {
    name: &'static str,
    binary: PathBuf,
    dir: &'a Path,
}

impl Kubectl<'_> {
    /// Runs it for half a minute at most; it must succeed.
    fn ok(&self, args: &[&str]) -> String {
        let (good, said) = self.run(args);
        assert!(good, "{} {args:?}: {said}", self.name);
        said
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .arg("30")
            .arg(&self.binary)
            .args(args)
            .env("KUBECONFIG", self.dir.join("kubeconfig"))
            .env("HOME", self.dir)
            .stdin(Stdio::null());
        command
    }

    /// Begins what goes on until it is told to end.
    fn begin(&self, args: &[&str]) -> Going {
        let mut child = self.command(args).stdout(Stdio::piped()).spawn().expect("timeout runs");
        let output = BufReader::new(readable(child.stdout.take().expect("it is piped")));
        Going { what: format!("{} {args:?}", self.name), child, output }
    }

    /// Likewise, but what is read is the requests that it makes.
    fn begin_noted(&self, args: &[&str]) -> Going {
        let mut command = self.command(args);
        let command = command.arg("-v=6").stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("timeout runs");
        let output = BufReader::new(readable(child.stderr.take().expect("it is piped")));
        Going { what: format!("{} {args:?}", self.name), child, output }
    }

    fn run(&self, args: &[&str]) -> (bool, String) {
        let done = self.command(args).output().expect("timeout runs");
        let both = [done.stdout, done.stderr].concat();
        (done.status.success(), String::from_utf8_lossy(&both).into_owned())
    }

    fn expect(&self, args: &[&str], wanted: &str) {
        let said = self.ok(args);
        assert!(said.contains(wanted), "{} {args:?}: no {wanted:?} in {said}", self.name);
    }
}

/// A pipe of either kind.
fn readable(pipe: impl Into<OwnedFd>) -> File {
    File::from(pipe.into())
}

/// A kubectl that watches or follows; ended at the latest by its half minute.
struct Going {
    what: String,
    child: Child,
    output: BufReader<File>,
}

impl Going {
    /// Reads up to a line with a text in it.
    fn until(&mut self, wanted: &str) -> String {
        let mut said = String::new();
        loop {
            let read = self.output.read_line(&mut said).expect("text");
            assert_ne!(read, 0, "{}: no {wanted:?} in {said}", self.what);
            if said.lines().next_back().is_some_and(|line| line.contains(wanted)) {
                return said;
            }
        }
    }

    /// Waits for it to end by itself.
    fn ends(&mut self) {
        let status = self.child.wait().expect("it can be waited for");
        assert!(status.success(), "{}: {status}", self.what);
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        // `timeout` passes the signal on.
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            // It may have ended.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        drop(self.child.wait());
    }
}

pub(crate) fn kubeconfig(node: &TestNode, dir: &Path) {
    let config = node.ok(&["kubeconfig"]).expect("a kubeconfig");
    fs::write(dir.join("kubeconfig"), config).expect("written");
}

/// A service's document, with more of its `spec`.
fn write(dir: &Path, name: &str, extra: &str) -> String {
    let path = dir.join(format!("{name}.yaml"));
    fs::write(&path, service(name, &["A=1"], "") + extra).expect("written");
    path.to_string_lossy().into_owned()
}

#[test]
fn e2e_kubectl_of_each_version_works_unchanged() {
    let test = "e2e_kubectl_of_each_version_works_unchanged";
    if skip(test) {
        return;
    }
    let dir = Dir::new("kubectl");
    let node = node(&dir, "");
    kubeconfig(&node, dir.path());
    let all = [
        ("kubectl-here", PathBuf::from("/usr/bin/kubectl")),
        ("kubectl-debian", tools().join("kubectl-debian/usr/bin/kubectl")),
        ("kubectl-current", tools().join("kubectl-current")),
    ];
    for (name, binary) in all {
        if !binary.exists() {
            println!("SKIP {test} with {name}: it is not there");
            continue;
        }
        let kubectl = Kubectl { name, binary, dir: dir.path() };
        println!("{name}: {}", kubectl.ok(&["version"]).trim());
        twelve_operations(&kubectl, name);
        traffic_and_logs(&kubectl, &node, &format!("{name}-more"));
        config_maps_and_secrets(&kubectl, &format!("{name}-data"));
        configurations_and_routes(&kubectl, &node, &format!("{name}-apart"));
        brokers_and_triggers(&kubectl, &format!("{name}-events"));
        watched_and_followed(&kubectl, &node, &format!("{name}-watch"));
        namespaces(&kubectl, &node, &format!("{name}-space"));
        if name == "kubectl-current" {
            // What older ones ask for by the second version of OpenAPI, which says nothing here.
            explained_and_warned(&kubectl, &format!("{name}-odd"));
        }
    }
}

/// The operations of everyday.
fn twelve_operations(kubectl: &Kubectl<'_>, name: &str) {
    let file = write(kubectl.dir, name, "");
    let file = file.as_str();
    kubectl.expect(&["apply", "-f", file], "created");
    kubectl.expect(&["apply", "-f", file], "unchanged");
    kubectl.expect(&["get", "ksvc", name], &format!("http://{name}.default.example.com"));
    kubectl.expect(&["get", "ksvc", name, "-o", "yaml"], "latestReadyRevisionName");
    kubectl
        .expect(&["apply", "--server-side", "--force-conflicts", "-f", file], "serverside-applied");
    kubectl.ok(&["apply", "--validate=false", "-f", file]);
    kubectl.expect(&["get", "all"], &format!("configuration.serving.knative.dev/{name}"));
    let ready = format!("ksvc/{name}");
    kubectl.expect(&["wait", &ready, "--for=condition=Ready", "--timeout=10s"], "condition met");
    kubectl.expect(&["delete", "-f", file], "deleted");
    kubectl.expect(&["create", "-f", file], "created");
    let labels = r#"{"metadata":{"labels":{"team":"a"}}}"#;
    kubectl.expect(&["patch", "ksvc", name, "--type", "merge", "-p", labels], "patched");
    kubectl.expect(&["get", "ksvc", "-l", "team=a"], name);
    kubectl.expect(&["delete", "ksvc", name, "--wait=false"], "deleted");
    let (good, said) = kubectl.run(&["get", "ksvc", name]);
    assert!(!good && said.contains("NotFound"), "{said}");
}

/// Revisions, a split, what is refused, instances and their output.
fn traffic_and_logs(kubectl: &Kubectl<'_>, node: &TestNode, name: &str) {
    let file = write(kubectl.dir, name, "");
    kubectl.ok(&["apply", "-f", &file]);
    let text = fs::read_to_string(&file).expect("readable").replace("\"1\"", "\"2\"");
    let split = format!(
        "  traffic:\n  - {{ revisionName: {name}-00001, percent: 50, tag: old }}\n  - {{ latestRevision: true, percent: 50 }}\n"
    );
    fs::write(&file, text + &split).expect("written");
    kubectl.expect(&["apply", "-f", &file], "configured");
    kubectl.expect(&["get", "rev"], &format!("{name}-00002"));
    kubectl.expect(
        &["get", "route", name, "-o", "yaml"],
        &format!("http://old-{name}.default.example.com"),
    );
    let request = format!(
        "GET / HTTP/1.1\r\nHost: old-{name}.default.example.com\r\nConnection: close\r\n\r\n"
    );
    let reply = node.raw(request.as_bytes()).expect("an answer");
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    let label = format!("serving.knative.dev/revision={name}-00001");
    let pods = kubectl.ok(&["get", "pods", "-l", &label, "-o", "name"]);
    let pod = pods.lines().next().expect("one instance");
    kubectl.ok(&["logs", pod, "-c", "user-container"]);
    kubectl.ok(&["get", "events"]);
    let wrong = r#"{"spec":{"traffic":[{"revisionName":"none-00001","percent":100}]}}"#;
    let (good, said) = kubectl.run(&["patch", "ksvc", name, "--type", "merge", "-p", wrong]);
    assert!(!good && said.contains("spec.traffic[0].revisionName"), "{said}");
    kubectl.expect(&["auth", "can-i", "create", "ksvc"], "yes");
    kubectl.ok(&["delete", "ksvc", name]);
}

/// What goes on until something ends it: watches, followed logs, waits.
fn watched_and_followed(kubectl: &Kubectl<'_>, node: &TestNode, name: &str) {
    let path = kubectl.dir.join(format!("{name}.yaml"));
    let window = "autoscaling.knative.dev/window: \"6s\"";
    let first = format!("{window}\n        autoscaling.knative.dev/initial-scale: \"1\"");
    let document = service(name, &["VHIVE_SIM_SAY=I-am-there"], "").replace(window, &first);
    fs::write(&path, &document).expect("written");
    let file = path.to_string_lossy().into_owned();
    let mut watch = kubectl.begin(&["get", "ksvc", "-w", "-o", "wide"]);
    kubectl.expect(&["apply", "-f", &file], "created");
    watch.until(&format!("{name}-00001"));
    fs::write(&path, document.replace("I-am-there", "I-am-here")).expect("written");
    kubectl.expect(&["apply", "-f", &file], "configured");
    watch.until(&format!("{name}-00002"));
    let service = format!("ksvc/{name}");
    let ready = "--for=jsonpath={.status.latestReadyRevisionName}";
    let latest = format!("{ready}={name}-00002");
    if kubectl.name == "kubectl-debian" {
        // It waits for conditions only.
        kubectl.ok(&["wait", &service, "--for=condition=Ready", "--timeout=10s"]);
    } else {
        kubectl.ok(&["wait", &service, &latest, "--timeout=10s"]);
    }
    let request =
        format!("GET / HTTP/1.1\r\nHost: {name}.default.example.com\r\nConnection: close\r\n\r\n");
    let reply = node.raw(request.as_bytes()).expect("an answer");
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    let described = kubectl.ok(&["describe", "ksvc", name]);
    for wanted in ["Latest Ready Revision Name", "RoutesReady", "Events:", "RevisionReady"] {
        assert!(described.contains(wanted), "no {wanted:?} in {described}");
    }
    let label = format!("serving.knative.dev/revision={name}-00002");
    let pods = kubectl.ok(&["get", "pods", "-l", &label, "-o", "name"]);
    let pod = pods.lines().next().expect("one instance");
    let described = kubectl.ok(&["describe", pod]);
    assert!(described.contains("user-container") && described.contains("Running"), "{described}");
    kubectl.expect(&["logs", pod, "--tail=1", "--since=1h", "--timestamps"], "Z I-am-here");
    let (good, said) = kubectl.run(&["logs", pod, "--previous"]);
    assert!(!good && said.contains("previous terminated container"), "{said}");
    let mut log = kubectl.begin(&["logs", "-f", pod]);
    log.until("I-am-here");
    let revision = format!("rev/{name}-00002");
    kubectl.expect(&["label", &revision, "mine=yes"], "labeled");
    kubectl.expect(&["get", "rev", "-l", "mine=yes"], &format!("{name}-00002"));
    kubectl.expect(&["annotate", "route", name, "why=so"], "annotated");
    let mut gone = kubectl.begin_noted(&["wait", "--for=delete", &service, "--timeout=20s"]);
    // What has gone before it looks is an error for older ones.
    gone.until("watch=true");
    kubectl.expect(&["delete", &service], "deleted");
    gone.ends();
    // The instance has gone with it.
    log.ends();
}

/// A file that makes its namespace, and the end of that.
fn namespaces(kubectl: &Kubectl<'_>, node: &TestNode, name: &str) {
    let made = format!("{name}-made");
    kubectl.expect(&["create", "namespace", &made], "created");
    kubectl.expect(&["describe", "namespace", &made], "Active");
    kubectl.expect(&["delete", "namespace", &made], "deleted");
    let path = kubectl.dir.join(format!("{name}.yaml"));
    let inside = service("hello", &["A=1"], "").replace(
        "metadata: { name: hello }",
        &format!("metadata: {{ name: hello, namespace: {name} }}"),
    );
    let space = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{ name: {name} }}\n---\n");
    fs::write(&path, format!("{space}{inside}")).expect("written");
    let file = path.to_string_lossy().into_owned();
    kubectl.expect(&["apply", "-f", &file], &format!("namespace/{name} created"));
    kubectl.expect(&["apply", "-f", &file], &format!("namespace/{name} unchanged"));
    kubectl.expect(&["label", "namespace", name, "team=a"], "labeled");
    kubectl.expect(&["get", "ns", "-l", "team=a"], name);
    let request =
        format!("GET / HTTP/1.1\r\nHost: hello.{name}.example.com\r\nConnection: close\r\n\r\n");
    let reply = node.raw(request.as_bytes()).expect("an answer");
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    // It waits until it is gone.
    kubectl.expect(&["delete", "namespace", name], "deleted");
    let (good, said) = kubectl.run(&["get", "ns", name]);
    assert!(!good && said.contains("NotFound"), "{said}");
    kubectl.expect(&["get", "ksvc", "-n", name], "No resources found");
    let reply = node.raw(request.as_bytes()).expect("an answer");
    assert!(reply.starts_with("HTTP/1.1 404 "), "{reply}");
}

/// What the schema says, and what becomes of a field that it does not know.
fn explained_and_warned(kubectl: &Kubectl<'_>, name: &str) {
    let spec = "ksvc.spec.template.spec";
    for (field, wanted) in [
        ("responseStartTimeoutSeconds", "the head of its reply"),
        ("containers.livenessProbe.httpGet", "path"),
        ("containers.startupProbe", "failureThreshold"),
    ] {
        kubectl.expect(&["explain", &format!("{spec}.{field}")], wanted);
    }
    let file = write(kubectl.dir, name, "  colour: red\n");
    let (good, said) = kubectl.run(&["apply", "-f", &file]);
    assert!(!good && said.contains("spec.colour"), "{said}");
    kubectl.expect(&["apply", "--validate=warn", "-f", &file], "unknown field \"spec.colour\"");
    kubectl.expect(&["apply", "--validate=ignore", "-f", &file], name);
    kubectl.ok(&["delete", "ksvc", name]);
}

/// Objects of the core, whose types kubectl knows by itself, and a service that takes from them.
fn config_maps_and_secrets(kubectl: &Kubectl<'_>, name: &str) {
    kubectl.expect(&["create", "configmap", name, "--from-literal=mode=fast"], "created");
    let secret = ["create", "secret", "generic", name, "--from-literal=word=hush"];
    kubectl.expect(&secret, "created");
    kubectl.expect(&["get", "cm", name, "-o", "jsonpath={.data.mode}"], "fast");
    kubectl.expect(&["get", "secrets"], "Opaque");
    let described = kubectl.ok(&["describe", "secret", name]);
    assert!(described.contains("word:  4 bytes") && !described.contains("hush"), "{described}");
    let patch = r#"{"data":{"size":"3"}}"#;
    kubectl.expect(&["patch", "cm", name, "-p", patch], "patched");
    let path = kubectl.dir.join(format!("{name}-map.yaml"));
    let document = |mode: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{ name: {name}-file }}\ndata: {{ mode: {mode} }}\n"
        )
    };
    let file = path.to_string_lossy();
    fs::write(&path, document("fast")).expect("written");
    kubectl.expect(&["apply", "-f", &file], "created");
    fs::write(&path, document("slow")).expect("written");
    kubectl.expect(&["apply", "-f", &file], "configured");
    kubectl.expect(&["apply", "-f", &file], "unchanged");
    kubectl.expect(
        &["apply", "--server-side", "--force-conflicts", "-f", &file],
        "serverside-applied",
    );
    let from =
        "            - { name: MODE, valueFrom: { configMapKeyRef: { name: none, key: mode } } }\n";
    let service = write(kubectl.dir, name, from);
    kubectl.ok(&["apply", "-f", &service]);
    kubectl.expect(&["get", "rev", &format!("{name}-00001")], "CreateContainerConfigError");
    kubectl.expect(&["create", "cm", "none", "--from-literal=mode=fast"], "created");
    let ready = format!("ksvc/{name}");
    kubectl.expect(&["wait", &ready, "--for=condition=Ready", "--timeout=10s"], "condition met");
    kubectl.ok(&["delete", "ksvc", name]);
    kubectl.ok(&["delete", "cm", name, "none"]);
    kubectl.expect(&["delete", "secret", name], "deleted");
    kubectl.ok(&["delete", "-f", &file]);
}

/// A configuration and a route that no service makes, the route first.
fn configurations_and_routes(kubectl: &Kubectl<'_>, node: &TestNode, name: &str) {
    let path = kubectl.dir.join(format!("{name}.yaml"));
    let configuration = service(name, &["A=1"], "").replace("kind: Service", "kind: Configuration");
    let documents = format!(
        "apiVersion: serving.knative.dev/v1\nkind: Route\nmetadata: {{ name: {name}-route }}\n\
         spec:\n  traffic: [{{ configurationName: {name}, percent: 100 }}]\n---\n{configuration}"
    );
    fs::write(&path, &documents).expect("written");
    let file = path.to_string_lossy().into_owned();
    kubectl.expect(&["apply", "-f", &file], "created");
    kubectl.expect(&["apply", "-f", &file], "unchanged");
    let route = format!("route/{name}-route");
    kubectl.expect(&["wait", &route, "--for=condition=Ready", "--timeout=10s"], "condition met");
    fs::write(&path, documents.replace("\"1\"", "\"2\"")).expect("written");
    kubectl.expect(&["apply", "-f", &file], "configured");
    kubectl.expect(&["get", "configuration", name], &format!("{name}-00002"));
    kubectl.expect(&["get", &route, "-o", "yaml"], &format!("revisionName: {name}-00002"));
    let host = format!("{name}-route.default.example.com");
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let reply = node.raw(request.as_bytes()).expect("an answer");
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    kubectl.expect(&["delete", "configuration", name], "deleted");
    kubectl.expect(&["get", &route], "ConfigurationMissing");
    kubectl.expect(&["delete", &route], "deleted");
}

/// A broker and a trigger, made before the service that it names.
fn brokers_and_triggers(kubectl: &Kubectl<'_>, name: &str) {
    let path = kubectl.dir.join(format!("{name}-eventing.yaml"));
    let documents = format!(
        "apiVersion: eventing.knative.dev/v1\nkind: Broker\nmetadata: {{ name: {name} }}\n---\n\
         apiVersion: eventing.knative.dev/v1\nkind: Trigger\nmetadata: {{ name: {name} }}\n\
         spec:\n  broker: {name}\n  filter: {{ attributes: {{ type: greeting }} }}\n  subscriber:\n    \
         ref: {{ apiVersion: serving.knative.dev/v1, kind: Service, name: {name} }}\n"
    );
    fs::write(&path, documents).expect("written");
    let file = path.to_string_lossy().into_owned();
    kubectl.expect(&["apply", "-f", &file], "created");
    kubectl.expect(&["apply", "-f", &file], "unchanged");
    let broker = format!("broker/{name}");
    kubectl.expect(&["wait", &broker, "--for=condition=Ready", "--timeout=10s"], "condition met");
    let url = format!("http://broker-ingress.knative-eventing.example.com/default/{name}");
    kubectl.expect(&["get", "broker", name], &url);
    kubectl.expect(&["get", "trigger", name], "SubscriberNotFound");
    let service = write(kubectl.dir, name, "");
    kubectl.ok(&["apply", "-f", &service]);
    let trigger = format!("trigger/{name}");
    kubectl.expect(&["wait", &trigger, "--for=condition=Ready", "--timeout=10s"], "condition met");
    kubectl.expect(&["get", "triggers"], &format!("http://{name}.default.example.com"));
    let cesql = r#"{"spec":{"filters":[{"cesql":"type = 'a'"}]}}"#;
    let (good, said) = kubectl.run(&["patch", "trigger", name, "--type", "merge", "-p", cesql]);
    assert!(!good && said.contains("spec.filters[0].cesql"), "{said}");
    kubectl.expect(&["delete", &trigger, &broker], "deleted");
    kubectl.ok(&["delete", "ksvc", name]);
}

#[test]
fn e2e_the_python_client_works_unchanged() {
    let test = "e2e_the_python_client_works_unchanged";
    let python = tools().join("python/bin/python");
    if skip(test) {
        return;
    }
    if !python.exists() {
        println!("SKIP {test}: no kubernetes package for Python");
        return;
    }
    let dir = Dir::new("python-client");
    let node = node(&dir, "");
    kubeconfig(&node, dir.path());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/services.py");
    let done = Command::new("timeout")
        .arg("60")
        .arg(&python)
        .arg(script)
        .env("KUBECONFIG", dir.path().join("kubeconfig"))
        .stdin(Stdio::null())
        .output()
        .expect("timeout runs");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    assert!(String::from_utf8_lossy(&done.stdout).contains("all of it works"), "{said}");
}
