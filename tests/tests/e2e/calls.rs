//! Functions that call other functions and brokers through the node's gateway, from inside their
//! sandboxes.

use std::fs;
use std::time::{Duration, Instant};

use vhive_tests::node::{TestNode, vhive};

use crate::microvm::{tag, traces};
use crate::runtimes::offered;
use crate::scene::{Dir, apply, said};

/// Long enough for microVMs that boot by emulation.
const PATIENCE: Duration = Duration::from_secs(120);

/// A web server of scripts. `relay` tells what it got and sends it on to `K_SINK` as an event of the
/// type in `NEXT`, if there is one; `ask` sends its body as it is to the host in its query, and replies
/// with what comes back; `knock` says whether the host in its query accepts a connection.
const START: &str = r#"#!/bin/sh
mkdir -p /srv/cgi-bin /tmp
script() { cat > /srv/cgi-bin/$1; chmod 755 /srv/cgi-bin/$1; }
script lib <<'END'
# Sends standard input (what a pipe holds at the most) to a host and writes what comes back, until that
# closes the connection: nc never sees an end of what it is to send, or it would close its half. Nothing is
# waited for in the background: httpd has its children ignore SIGCHLD, and then a shell's wait never ends.
send() {
    mkfifo /tmp/pipe.$$
    exec 3<> /tmp/pipe.$$
    cat >&3
    nc "$1" 80 <&3
    exec 3>&-
    rm /tmp/pipe.$$
}
reply() { printf 'Content-Type: text/plain\r\n\r\n'; cat; }
END
script relay <<'END'
#!/bin/sh
. /srv/cgi-bin/lib
body=$(head -c "${CONTENT_LENGTH:-0}")
echo "$K_SERVICE got $body" >&2
[ -n "$NEXT" ] || { echo "nothing sent" | reply; exit; }
url=${K_SINK#http://}; host=${url%%/*}; path=/${url#*/}
[ "$path" != "/$host" ] || path=/cgi-bin/relay
data="$body > $K_SERVICE"
printf 'POST %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nce-specversion: 1.0\r\nce-id: 1\r\n' \
    "$path" "$host" > /tmp/head.$$
printf 'ce-source: /%s\r\nce-type: %s\r\nContent-Length: %s\r\n\r\n%s' \
    "$K_SERVICE" "$NEXT" "${#data}" "$data" >> /tmp/head.$$
send "$host" < /tmp/head.$$ | reply
END
script ask <<'END'
#!/bin/sh
. /srv/cgi-bin/lib
head -c "${CONTENT_LENGTH:-0}" > /tmp/body.$$
send "$QUERY_STRING" < /tmp/body.$$ | reply
END
script knock <<'END'
#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
if nc -w 3 "$QUERY_STRING" 80 < /dev/null; then echo open; else echo refused; fi
END
exec httpd -f -p $PORT -h /srv
"#;

/// Builds the image; says what is missing if it cannot.
fn image(dir: &Dir) -> Result<(), String> {
    if fs::metadata("/bin/busybox").is_err() {
        return Err("/bin/busybox (Debian package busybox-static)".to_owned());
    }
    let recipe = dir.path().join("scripts");
    fs::create_dir_all(&recipe).expect("made");
    fs::copy("/bin/busybox", recipe.join("busybox")).expect("copied");
    fs::write(recipe.join("start"), START).expect("written");
    let applets = ["sh", "httpd", "cat", "head", "nc", "mkdir", "mkfifo", "chmod", "rm"];
    let links: String = applets
        .iter()
        .map(|name| format!(", {{ from = \"busybox\", to = \"/bin/{name}\", mode = \"0755\" }}"))
        .collect();
    let text = format!(
        "name = \"dev.local/scripts:latest\"\n[[layer]]\n\
         copy = [{{ from = \"start\", to = \"/start\", mode = \"0755\" }}{links}]\n\
         [config]\nentrypoint = [\"/bin/sh\", \"/start\"]\n"
    );
    fs::write(recipe.join("image.toml"), text).expect("written");
    let built = vhive(dir.path(), &["image", "build", &recipe.to_string_lossy()]).expect("runs");
    assert!(built.status.success(), "{}", said(&built));
    Ok(())
}

/// A service of the scripts. `annotations` are `NAME: VALUE`; `extra` is more YAML of the pod's spec,
/// each line indented by six spaces.
fn service(name: &str, runtime: &str, annotations: &[&str], extra: &str) -> String {
    let annotations: String = annotations.iter().map(|line| format!("        {line}\n")).collect();
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{ name: {name} }}\n\
         spec:\n  template:\n    metadata:\n      annotations:\n        \
         autoscaling.knative.dev/window: \"60s\"\n{annotations}    spec:\n      \
         runtimeClassName: {runtime}\n{extra}      containers:\n        \
         - image: dev.local/scripts:latest\n          resources: {{ limits: {{ memory: 128Mi }} }}\n"
    )
}

fn with_next(yaml: &str, next: &str) -> String {
    format!("{yaml}          env: [{{ name: NEXT, value: {next} }}]\n")
}

/// Posts to a script of a service through the gateway; the whole reply.
fn post(node: &TestNode, service: &str, script: &str, body: &str) -> String {
    let host = format!("{service}.default.example.com");
    let request = format!(
        "POST /cgi-bin/{script} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    node.raw(request.as_bytes()).expect("a reply")
}

/// Waits until a service has logged a text.
fn wait_for_log(node: &TestNode, service: &str, text: &str) {
    let begun = Instant::now();
    let (_hold, ticks) = std::sync::mpsc::channel::<()>();
    loop {
        let logs = node.ok(&["logs", service]).expect("logs");
        if logs.contains(text) {
            return;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{service} never said {text:?}:\n{logs}\n{}",
            node.log()
        );
        // Nothing tells when a line is logged.
        let _ = ticks.recv_timeout(Duration::from_millis(100));
    }
}

/// A node with the image, and the isolating runtimes that it offers; none, and why, if there are none.
fn scene(test: &str, dir: &Dir) -> Option<(TestNode, Vec<String>)> {
    let offered = offered(test, dir);
    if offered.is_empty() {
        return None;
    }
    if let Err(lacks) = image(dir) {
        eprintln!("SKIP {test}: {lacks}");
        return None;
    }
    let node = TestNode::start(dir.path(), "").expect("the node starts");
    Some((node, offered))
}

#[test]
fn e2e_a_function_sends_to_its_sink_and_the_chain_runs() {
    let test = "e2e_a_function_sends_to_its_sink_and_the_chain_runs";
    let dir = Dir::new("sink");
    let Some((node, offered)) = scene(test, &dir) else { return };
    for runtime in &offered {
        let [first, second, third] = ["first", "second", "third"].map(|n| format!("{n}-{runtime}"));
        let broker = format!("vhive.dev/sink: broker/{runtime}");
        apply(&node, &dir, &with_next(&service(&first, runtime, &[&broker], ""), "middle"));
        let direct = format!("vhive.dev/sink: service/{third}");
        apply(&node, &dir, &with_next(&service(&second, runtime, &[&direct], ""), "end"));
        apply(&node, &dir, &service(&third, runtime, &[], ""));
        apply(
            &node,
            &dir,
            &format!(
                "apiVersion: eventing.knative.dev/v1\nkind: Broker\nmetadata: {{ name: {runtime} }}\n---\n\
             apiVersion: eventing.knative.dev/v1\nkind: Trigger\nmetadata: {{ name: {runtime} }}\nspec:\n  \
             broker: {runtime}\n  filter: {{ attributes: {{ type: middle }} }}\n  subscriber:\n    \
             ref: {{ apiVersion: serving.knative.dev/v1, kind: Service, name: {second} }}\n    \
             uri: /cgi-bin/relay\n"
            ),
        );
        let reply = post(&node, &first, "relay", "hello");
        assert!(reply.contains("HTTP/1.1 202 "), "{runtime}: {reply}\n{}", node.log());
        wait_for_log(&node, &third, &format!("{third} got hello > {first} > {second}"));
        // Without an annotation there is no way.
        let knock = |service: &str| post(&node, service, "knock?198.19.255.1", "");
        assert!(knock(&third).contains("refused"), "{runtime}: {}", knock(&third));
        assert!(knock(&first).contains("open"), "{runtime}: {}", knock(&first));
    }
    let tag = tag(&dir);
    assert!(node.stop().expect("ends").success());
    assert_eq!(traces(&tag), [""; 0]);
}

/// A container's runtime, which starts sooner than a machine.
fn quick(offered: &[String]) -> Option<&String> {
    ["runc", "crun", "runsc"].iter().find_map(|name| offered.iter().find(|has| has == name))
}

#[test]
fn e2e_a_function_inside_gets_no_more_than_a_client_outside() {
    let test = "e2e_a_function_inside_gets_no_more_than_a_client_outside";
    let dir = Dir::new("inside");
    let Some((node, offered)) = scene(test, &dir) else { return };
    let Some(runtime) = quick(&offered) else {
        eprintln!("SKIP {test}: a runtime for containers");
        return;
    };
    apply(&node, &dir, &service("spy", runtime, &["vhive.dev/calls: other"], ""));
    apply(&node, &dir, &service("other", runtime, &[], ""));
    assert!(post(&node, "other", "relay", "").contains("nothing sent"));
    let other = "Host: other.default.svc.cluster.local\r\n";
    let requests = [
        format!("POST /cgi-bin/relay HTTP/1.1\r\n{other}Connection: close\r\nContent-Length: 0\r\n\r\n"),
        // Of the node's own API.
        "GET /apis/serving.knative.dev/v1/services HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            .to_owned(),
        "GET /vhive/v1/overview HTTP/1.1\r\nHost: 127.0.0.1:8081\r\nConnection: close\r\n\r\n".to_owned(),
        // Revisions that are not there, or not for it.
        format!("GET / HTTP/1.1\r\n{other}Knative-Serving-Tag: secret\r\nConnection: close\r\n\r\n"),
        format!(
            "GET / HTTP/1.1\r\n{other}Knative-Serving-Revision: other-00009\r\nKnative-Serving-Namespace: \
             kube-system\r\nConnection: close\r\n\r\n"
        ),
        "GET / HTTP/1.1\r\nHost: secret-other.default.example.com\r\nConnection: close\r\n\r\n".to_owned(),
        // A broker that there is none of, and an event that is none.
        "POST /default/nothing HTTP/1.1\r\nHost: broker-ingress.knative-eventing.svc.cluster.local\r\n\
         Connection: close\r\nContent-Length: 0\r\n\r\n"
            .to_owned(),
        // Two hosts; two lengths; a proxy's request.
        format!("GET / HTTP/1.1\r\n{other}Host: spy.default.example.com\r\nConnection: close\r\n\r\n"),
        format!(
            "POST / HTTP/1.1\r\n{other}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\
             Connection: close\r\n\r\n0\r\n\r\n"
        ),
        "CONNECT 127.0.0.1:8081 HTTP/1.1\r\nHost: 127.0.0.1:8081\r\nConnection: close\r\n\r\n".to_owned(),
    ];
    let mut statuses = Vec::new();
    for request in &requests {
        let outside = node.raw(request.as_bytes()).expect("a reply");
        let inside = post(&node, "spy", "ask?198.19.255.1", request);
        let inside = inside.split_once("\r\n\r\n").expect("a reply of the spy's").1;
        let line = |reply: &str| reply.lines().next().unwrap_or_default().trim().to_owned();
        // What comes back may be in chunks.
        let found = inside.lines().find(|line| line.starts_with("HTTP/1.")).unwrap_or_default();
        assert_eq!(found.trim(), line(&outside), "{request}");
        statuses.push(line(&outside));
    }
    assert!(statuses[0].contains(" 200"), "{statuses:?}");
    assert!(statuses[1].contains(" 404") && statuses[2].contains(" 404"), "{statuses:?}");
    assert!(node.stop().expect("ends").success());
}

#[test]
fn e2e_a_function_that_calls_itself_comes_to_an_end() {
    let test = "e2e_a_function_that_calls_itself_comes_to_an_end";
    let dir = Dir::new("itself");
    let Some((node, offered)) = scene(test, &dir) else { return };
    let Some(runtime) = quick(&offered) else {
        eprintln!("SKIP {test}: a runtime for containers");
        return;
    };
    let itself = ["vhive.dev/sink: service/itself", "autoscaling.knative.dev/max-scale: \"1\""];
    let alone = "      containerConcurrency: 1\n      timeoutSeconds: 3\n";
    apply(&node, &dir, &with_next(&service("itself", runtime, &itself, alone), "more"));
    apply(&node, &dir, &service("other", runtime, &[], ""));
    assert!(post(&node, "other", "relay", "").contains("nothing sent"));
    let begun = Instant::now();
    let reply = std::thread::scope(|scope| {
        let outer = scope.spawn(|| post(&node, "itself", "relay", "x"));
        // The node serves others meanwhile.
        assert!(post(&node, "other", "relay", "").contains("nothing sent"));
        outer.join().expect("answered")
    });
    // Its own request is what keeps it from serving itself: both run out of time, and the outer
    // one, whose reply had begun, is cut off.
    assert!(reply.matches("HTTP/1.1 200").count() <= 1, "nobody served the inner one: {reply}");
    let took = begun.elapsed();
    assert!((Duration::from_secs(2)..PATIENCE / 4).contains(&took), "{took:?}");
    // On a busy host one may have to wait for longer than the service's time-out.
    let again = || post(&node, "itself", "knock?127.0.0.1", "").contains("refused");
    assert!((0..5).any(|_| again()), "it serves again");
    assert!(node.stop().expect("ends").success());
}
