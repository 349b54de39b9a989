use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use super::*;

/// Keeps services as a platform would; those named `slow…` are never ready, `bad…` fail,
/// `no…` are refused, `stale…` tell of what they were before until they are asked.
/// Updates are checked as Knative's webhooks do.
/// `mute…` is not answered, and `raced…` is changed by somebody else twice, each time after it was read.
#[derive(Default)]
struct Fake(RefCell<BTreeMap<String, Value>>, Cell<u32>);

/// A platform whose every third call comes to nothing.
#[derive(Default)]
struct Shaky(Fake, Cell<usize>);

impl Api for Shaky {
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), String> {
        self.1.set(self.1.get() + 1);
        match self.1.get() % 9 {
            3 => Err("connection reset".to_owned()),
            6 => Ok((503, json!({"message": "not now"}))),
            // It was done, and the answer is lost.
            0 => self.0.call(method, path, body).await.and(Err("connection reset".to_owned())),
            _ => self.0.call(method, path, body).await,
        }
    }
}

const CREATOR: &str = "serving.knative.dev/creator";
const MODIFIER: &str = "serving.knative.dev/lastModifier";

/// Sets what a server sets of itself, or refuses an update that would change it.
fn defaulted(old: Option<&Value>, body: &mut Value) -> Result<(), (u16, Value)> {
    let Some(old) = old else {
        for key in [CREATOR, MODIFIER] {
            set(&mut body["metadata"], "annotations", (key, "us"));
        }
        body["metadata"]["finalizers"] = json!(["routes.serving.knative.dev"]);
        body["metadata"]["resourceVersion"] = json!("1");
        return Ok(());
    };
    let version = |service: &Value| service["metadata"]["resourceVersion"].clone();
    if version(old) != version(body) {
        return Err((409, json!({"message": "the object has been modified"})));
    }
    let changed = old["spec"] != body["spec"];
    if changed {
        set(&mut body["metadata"], "annotations", (MODIFIER, "us"));
    }
    for key in [CREATOR, MODIFIER] {
        let of = |service: &Value| service["metadata"]["annotations"][key].clone();
        if of(old) != of(body) && !(changed && key == MODIFIER) {
            let why = format!("annotation value is immutable: metadata.annotations.{key}");
            return Err((400, json!({ "message": why })));
        }
    }
    let next = version(old).as_str().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) + 1;
    body["metadata"]["resourceVersion"] = json!(next.to_string());
    Ok(())
}

/// What stands behind the label's name in a selector.
fn selected(path: &str) -> Option<&str> {
    path.split_once("?labelSelector=load.vhive.dev%2Fdeployed-from%3D").map(|(_, label)| label)
}

impl Api for Fake {
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), String> {
        if path.ends_with("/mute-0") {
            std::future::pending::<()>().await;
        }
        let mut all = self.0.borrow_mut();
        let name = body.map_or(path.rsplit('/').next().unwrap_or_default(), |body| {
            body["metadata"]["name"].as_str().unwrap_or_default()
        });
        let name = name.to_owned();
        match (method.as_str(), body) {
            ("GET", _) if path.contains('?') => {
                let label = selected(path).expect("a selector");
                let has = |one: &&Value| one["metadata"]["labels"][MARK] == label;
                let items: Vec<Value> = all.values().filter(has).cloned().collect();
                Ok((200, json!({ "items": items })))
            }
            ("GET", _) => {
                // By now it has looked.
                if let Some(one) = all.get_mut(&name) {
                    let generation = one["metadata"]["generation"].clone();
                    let stale = one["status"]["observedGeneration"] != generation;
                    if stale {
                        one["status"]["observedGeneration"] = generation;
                        one["status"]["url"] = json!(format!("http://{name}.new.example.com"));
                    }
                }
                let found = all.get(&name).map(|one| (200, one.clone()));
                if name.starts_with("raced") && found.is_some() && self.1.get() < 2 {
                    self.1.set(self.1.get() + 1);
                    let metadata = &mut all.get_mut(&name).unwrap()["metadata"];
                    metadata["resourceVersion"] = json!(format!("{}", 100 + self.1.get()));
                }
                Ok(found.unwrap_or((404, json!({"message": "not found"}))))
            }
            ("DELETE", _) => Ok((200, all.remove(&name).unwrap_or_default())),
            (_, Some(body)) if name.starts_with("no") => {
                let _refused = body;
                Ok((422, json!({"message": "spec.x: unknown field"})))
            }
            (_, Some(body)) => {
                let mut body = body.clone();
                if let Err(refused) = defaulted(all.get(&name), &mut body) {
                    return Ok(refused);
                }
                let (status, reason) = match &name {
                    name if name.starts_with("slow") => ("Unknown", "Pulling"),
                    name if name.starts_with("bad") => ("False", "RevisionFailed"),
                    _ => ("True", ""),
                };
                let old = all.get(&name).and_then(|old| old["metadata"]["generation"].as_u64());
                let generation = old.unwrap_or(0) + 1;
                body["metadata"]["generation"] = json!(generation);
                let observed = generation - u64::from(name.starts_with("stale"));
                body["status"] = json!({
                    "observedGeneration": observed,
                    "url": format!("http://{name}.default.example.com"),
                    "conditions": [{"type": "Ready", "status": status, "reason": reason,
                                    "message": "no such image"}],
                });
                all.insert(name, body.clone());
                Ok((201, body))
            }
            _ => Err("nonsense".to_owned()),
        }
    }
}

const MANIFEST: &str = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: x}\n\
    spec: {template: {spec: {containers: [{image: i, ports: [{name: h2c, containerPort: 50051}]}]}}}\n";

fn deployment(dir: &Path) -> Deployment {
    let path = dir.join("functions.json");
    std::fs::write(&path, "").unwrap();
    Deployment {
        mark: Mark::of(&path).unwrap(),
        namespace: "default".to_owned(),
        concurrency: 3,
        patience: Duration::from_millis(400),
        domain: None,
        gateway: Some("127.0.0.1:9".to_owned()),
    }
}

fn wanted(dir: &Path, names: &[&str]) -> Vec<Wanted> {
    let manifest = dir.join("x.yaml");
    std::fs::write(&manifest, MANIFEST).unwrap();
    names
        .iter()
        .map(|name| {
            let (name, manifest) = ((*name).to_owned(), manifest.clone());
            Wanted { name, manifest, initial_scale: 0, eventing: false }
        })
        .collect()
}

fn deploy(deployment: &Deployment, api: &impl Api, wanted: &[Wanted]) -> Vec<Done<Endpoint>> {
    block_on(deployment.deploy(api, wanted, &Stop::default(), |_| {}))
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(work)
}

#[test]
fn only_what_is_ready_has_an_endpoint_and_each_failure_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let mut wanted = wanted(dir.path(), &["a-0", "slow-0", "bad-0", "no-0", "a-1"]);
    wanted[4].manifest = dir.path().join("absent.yaml");
    wanted[0].initial_scale = 3;
    let api = Fake::default();
    let done = deploy(&deployment(dir.path()), &api, &wanted);
    let endpoint = done[0].1.as_ref().unwrap();
    assert_eq!(endpoint.hostname, "a-0.default.example.com");
    assert_eq!(endpoint.protocol, Some(Protocol::Grpc));
    for (index, said) in
        [(1, "not ready within"), (2, "RevisionFailed"), (3, "unknown field"), (4, "absent.yaml")]
    {
        let why = done[index].1.as_ref().unwrap_err();
        assert!(why.contains(said), "{why}");
    }
    let stored = api.0.borrow()["a-0"].clone();
    assert_eq!(stored["metadata"]["annotations"][MARK], "functions.json");
    let of_template = &stored["spec"]["template"]["metadata"]["annotations"];
    assert_eq!((&of_template[TARGET], &of_template[INITIAL_SCALE]), (&"1".into(), &"3".into()));
    let second = api.0.borrow()["slow-0"]["spec"]["template"]["metadata"].clone();
    assert!(second["annotations"][INITIAL_SCALE].is_null(), "{second}");
}

#[test]
fn what_is_said_of_an_earlier_generation_makes_nothing_ready() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = wanted(dir.path(), &["stale-0"]);
    let api = Fake::default();
    let deployment = Deployment { patience: Duration::from_secs(60), ..deployment(dir.path()) };
    let done = deploy(&deployment, &api, &wanted);
    let endpoint = done[0].1.as_ref().unwrap();
    assert_eq!(endpoint.hostname, "stale-0.new.example.com", "what was said later counts");
    for (service, current) in [
        (json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 1}}), false),
        (json!({"metadata": {"generation": 2}, "status": {}}), false),
        (json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 2}}), true),
        (json!({"metadata": {}, "status": {}}), true),
    ] {
        assert_eq!(is_current(&service), current, "{service}");
    }
}

#[test]
fn only_what_was_deployed_is_updated_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = wanted(dir.path(), &["a-0", "own-0", "gone-0"]);
    let api = Fake::default();
    let own = json!({"metadata": {"name": "own-0"}});
    api.0.borrow_mut().insert("own-0".to_owned(), own);
    // Of the same name, in another directory.
    let elsewhere = dir.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let (other, deployment) = (deployment(&elsewhere), deployment(dir.path()));
    assert_eq!(other.mark.name, deployment.mark.name);
    let done = deploy(&deployment, &api, &wanted[..2]);
    assert!(done[0].1.is_ok() && done[1].1.as_ref().unwrap_err().contains("not deployed from"));
    let again = deploy(&deployment, &api, &wanted[..1]);
    assert!(again[0].1.is_ok(), "an update");
    let taken = deploy(&other, &api, &wanted[..1]);
    assert!(taken[0].1.as_ref().unwrap_err().contains("not deployed from this file"));
    let left = block_on(other.delete(&api, &wanted[..1])).unwrap();
    assert!(left[0].1.as_ref().unwrap_err().contains("left alone"));
    // The file lists one less by now.
    let deleted = block_on(deployment.delete(&api, &wanted[1..])).unwrap();
    let hostname = Some("a-0.default.example.com".to_owned());
    let gone = |name: &str, was_there, hostname| {
        (name.to_owned(), Ok(Gone { was_there, prefix: format!("{name}.default."), hostname }))
    };
    assert_eq!(deleted[..2], [gone("a-0", true, hostname), gone("gone-0", false, None)]);
    assert!(deleted[2].1.as_ref().unwrap_err().contains("left alone"));
    assert_eq!(api.0.borrow().keys().collect::<Vec<_>>(), ["own-0"]);
}

#[test]
fn what_an_older_version_deployed_from_a_file_of_this_name_is_updated_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = wanted(dir.path(), &["a-0", "b-0", "c-0"]);
    let api = Fake::default();
    for (name, file) in
        [("a-0", "functions.json"), ("b-0", "functions.json"), ("c-0", "others.json")]
    {
        let old = json!({"metadata": {"name": name, "annotations": {MARK: file}}});
        api.0.borrow_mut().insert(name.to_owned(), old);
    }
    let deployment = deployment(dir.path());
    let done = deploy(&deployment, &api, &wanted[..1]);
    assert!(done[0].1.is_ok(), "{done:?}");
    let label = api.0.borrow()["a-0"]["metadata"]["labels"][MARK].clone();
    assert_eq!(label, deployment.mark.label.as_str(), "it is marked from then on");
    let deleted = block_on(deployment.delete(&api, &wanted)).unwrap();
    let left: Vec<_> = deleted.iter().filter(|(_, done)| done.is_err()).collect();
    assert!(matches!(left.as_slice(), [(name, _)] if name == "c-0"), "{deleted:?}");
    assert_eq!(api.0.borrow().keys().collect::<Vec<_>>(), ["c-0"]);
}

#[test]
fn one_that_is_never_ready_holds_no_other_up() {
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<String> =
        std::iter::once("slow-0".to_owned()).chain((0..9).map(|n| format!("a-{n}"))).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let wanted = wanted(dir.path(), &names);
    let (api, mut told) = (Fake::default(), Vec::new());
    let deployment = Deployment { concurrency: 2, ..deployment(dir.path()) };
    let stop = Stop::default();
    let done = block_on(
        deployment
            .deploy(&api, &wanted, &stop, |(name, done)| told.push((name.clone(), done.is_ok()))),
    );
    assert_eq!(told.len(), 10);
    assert_eq!(told[9], ("slow-0".to_owned(), false), "the others are told before: {told:?}");
    let order: Vec<&str> = done.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(order, names, "results are in the order of the list");
}

#[test]
fn a_stop_begins_no_more_and_keeps_what_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = wanted(dir.path(), &["a-0", "slow-0", "slow-1", "a-1"]);
    let (api, stop) = (Fake::default(), Stop::default());
    let patience = Duration::from_secs(600);
    let deployment = Deployment { concurrency: 2, patience, ..deployment(dir.path()) };
    let done = block_on(async {
        let ask = async {
            while api.0.borrow().len() < 3 {
                tokio::task::yield_now().await;
            }
            stop.ask();
        };
        tokio::join!(deployment.deploy(&api, &wanted, &stop, |_| {}), ask).0
    });
    assert!(done[0].1.is_ok(), "{done:?}");
    assert_eq!(done.len(), 3, "the last was not begun: {done:?}");
    for (_, done) in &done[1..] {
        assert!(done.as_ref().unwrap_err().contains("stopped"), "{done:?}");
    }
    assert!(!api.0.borrow().contains_key("a-1"));
}

#[test]
fn what_passes_by_itself_fails_no_service() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = wanted(dir.path(), &["a-0", "stale-0", "a-1", "stale-1", "a-2", "bad-0"]);
    let api = Shaky::default();
    let patience = Duration::from_secs(60);
    let deployment = Deployment { patience, ..deployment(dir.path()) };
    for _ in 0..2 {
        let done = deploy(&deployment, &api, &wanted);
        assert!(done[..5].iter().all(|(_, done)| done.is_ok()), "{done:?}");
        assert!(done[5].1.as_ref().unwrap_err().contains("RevisionFailed"), "{done:?}");
    }
    let deleted = block_on(deployment.delete(&api, &wanted)).unwrap();
    assert!(deleted.iter().all(|(_, done)| done.is_ok()), "{deleted:?}");
    assert!(api.0.0.borrow().is_empty() && api.1.get() > 20, "{} calls", api.1.get());
}

#[test]
fn a_server_that_is_busy_at_first_tells_where_its_gateway_is_all_the_same() {
    /// Answers each call with the next of these, and nothing after the last.
    struct Said(RefCell<Vec<Result<(u16, Value), String>>>);
    impl Api for Said {
        async fn call(
            &self,
            _: Method,
            path: &str,
            _: Option<&Value>,
        ) -> Result<(u16, Value), String> {
            assert_eq!(path, "/vhive/v1/node");
            self.0.borrow_mut().pop().unwrap()
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let deployment = Deployment { patience: Duration::from_secs(60), ..deployment(dir.path()) };
    let find = |said: Vec<_>| block_on(deployment.find_gateway(&Said(RefCell::new(said))));
    let node = Ok((200, json!({"gateway": "127.0.0.1:1"})));
    let busy = Ok((503, json!({"message": "not now"})));
    let found = find(vec![node, busy, Err("connection reset".to_owned())]);
    assert_eq!(found, Ok(Some("127.0.0.1:1".to_owned())));
    for status in [403, 404] {
        assert_eq!(find(vec![Ok((status, json!({})))]), Ok(None), "of a cluster");
    }
    let unknown = find(vec![Ok((401, json!({"message": "who?"})))]).unwrap_err();
    assert!(unknown.contains("does not know us") && unknown.contains("who?"), "{unknown}");
}

#[test]
fn who_changes_a_service_meanwhile_goes_before_and_it_is_updated_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = wanted(dir.path(), &["raced-0"]);
    let api = Fake::default();
    let deployment = deployment(dir.path());
    for _ in 0..2 {
        let done = deploy(&deployment, &api, &wanted);
        assert!(done[0].1.is_ok(), "{done:?}");
    }
    assert_eq!(api.1.get(), 2, "it was changed twice, and looked at again");
}

#[test]
fn a_server_that_never_answers_is_waited_for_no_longer_than_asked() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = wanted(dir.path(), &["mute-0", "a-0"]);
    let done = deploy(&deployment(dir.path()), &Fake::default(), &wanted);
    assert!(done[0].1.as_ref().unwrap_err().contains("no answer within 400ms"), "{done:?}");
    assert!(done[1].1.is_ok(), "{done:?}");
}

#[test]
fn what_was_deployed_is_deleted_though_its_list_is_empty_broken_or_gone() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = wanted(dir.path(), &["a-0", "a-1"]);
    let (path, api) = (dir.path().join("functions.json"), Fake::default());
    let before = deployment(dir.path());
    for break_it in [
        |path: &Path| std::fs::write(path, "[").unwrap(),
        |path: &Path| std::fs::remove_file(path).unwrap(),
    ] {
        let _ready = deploy(&before, &api, &wanted);
        break_it(&path);
        assert!(read(&path, Path::new("yamls")).is_err());
        let mark = Mark::of(&path).unwrap();
        let deleted = block_on(Deployment { mark, ..before.clone() }.delete(&api, &[])).unwrap();
        assert!(deleted.len() == 2 && deleted.iter().all(|(_, done)| done.is_ok()), "{deleted:?}");
        assert!(api.0.borrow().is_empty());
    }
}

#[test]
fn what_is_deleted_has_no_endpoint_any_more() {
    let line = |name: &str| json!({"hostname": name, "eventing": false, "more": 1});
    let gone = |name: &str, hostname: Option<&str>| Gone {
        was_there: true,
        prefix: format!("{name}.default."),
        hostname: hostname.map(str::to_owned),
    };
    let list = json!([line("a.default.x"), line("b.default.y"), line("b.x"), line("ab.default.x")]);
    let left = without(&list, &[gone("b", Some("b.x")), gone("d", None), gone("a", None)]);
    assert_eq!(left, Some(json!([line("ab.default.x")])));
    assert_eq!(without(&list, &[gone("d", Some("d.x"))]), None);
    assert_eq!(without(&json!({"no": "list"}), &[gone("a", None)]), None);
}

#[test]
fn what_is_deleted_in_another_domain_or_once_more_has_no_endpoint_either() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = wanted(dir.path(), &["a-0"]);
    let plain = deployment(dir.path());
    let of_domain = Deployment { domain: Some("own.test".to_owned()), ..plain.clone() };
    for [by, then] in [[&plain, &of_domain], [&of_domain, &plain]] {
        let api = Fake::default();
        let endpoint = deploy(by, &api, &wanted).remove(0).1.unwrap();
        let list = json!([endpoint]);
        // The second time it is gone already, as after a deletion that was interrupted.
        for was_there in [true, false] {
            let (_, gone) = block_on(then.delete(&api, &wanted)).unwrap().remove(0);
            let gone = gone.unwrap();
            assert_eq!(gone.was_there, was_there);
            assert_eq!(without(&list, &[gone]), Some(json!([])));
        }
    }
}

#[test]
fn an_update_keeps_what_the_server_and_others_have_set() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = wanted(dir.path(), &["a-0"]);
    let api = Fake::default();
    let deployment = deployment(dir.path());
    let deploy = || deploy(&deployment, &api, &wanted).remove(0).1;
    deploy().unwrap();
    set(&mut api.0.borrow_mut().get_mut("a-0").unwrap()["metadata"], "labels", ("team", "x"));
    deploy().unwrap();
    // Of another spec, by way of its manifest.
    let changed =
        MANIFEST.replace("image: i", "image: j").replace("name: x", "name: x, labels: {v: w}");
    std::fs::write(&wanted[0].manifest, changed).unwrap();
    deploy().unwrap();
    api.0.borrow_mut().get_mut("a-0").unwrap()["metadata"]["ownerReferences"] = json!([1]);
    deploy().unwrap();
    let stored = api.0.borrow()["a-0"].clone();
    let metadata = &stored["metadata"];
    assert_eq!(metadata["ownerReferences"], json!([1]));
    assert_eq!(metadata["annotations"][CREATOR], "us");
    assert_eq!((&metadata["labels"]["team"], &metadata["labels"]["v"]), (&"x".into(), &"w".into()));
    assert_eq!(metadata["labels"][MARK], deployment.mark.label.as_str());
    assert_eq!(metadata["finalizers"], json!(["routes.serving.knative.dev"]));
    assert_eq!(stored.pointer("/spec/template/spec/containers/0/image"), Some(&"j".into()));
    // What the manifest has no more goes; what others have set is not the manifest's.
    std::fs::write(&wanted[0].manifest, MANIFEST.replace("image: i", "image: j")).unwrap();
    deploy().unwrap();
    let stored = api.0.borrow()["a-0"].clone();
    let metadata = &stored["metadata"];
    assert_eq!(
        (&metadata["labels"]["team"], &metadata["labels"]["v"]),
        (&"x".into(), &Value::Null)
    );
    assert_eq!(metadata["annotations"][CREATOR], "us");
    // What is made anew without looking is refused, so that the test could fail.
    let (bare, _) = deployment.manifest(&wanted[0]).unwrap();
    let mut bare = bare;
    bare["metadata"]["resourceVersion"] = metadata["resourceVersion"].clone();
    let (status, why) =
        block_on(api.call(Method::PUT, &deployment.path("a-0"), Some(&bare))).unwrap();
    assert!(status == 400 && why["message"].as_str().unwrap().contains("immutable"), "{why}");
}

#[test]
fn a_url_is_a_host_and_its_port_or_refused() {
    for (url, wanted) in [
        ("http://f.default.example.com", Ok(("f.default.example.com", None))),
        ("http://f.example.com:80/x", Ok(("f.example.com", None))),
        ("http://f.example.com:8080", Ok(("f.example.com", Some("f.example.com:8080")))),
        ("f.example.com:81", Ok(("f.example.com", Some("f.example.com:81")))),
        ("https://f.example.com", Err("speaks no TLS")),
        ("http://", Err("has no host")),
        ("", Err("has no host")),
    ] {
        match (place(url), wanted) {
            (Ok((host, address)), Ok(wanted)) => {
                assert_eq!((host.as_str(), address.as_deref()), wanted, "{url}");
            }
            (Err(why), Err(said)) => assert!(why.contains(said), "{why}"),
            (got, _) => panic!("{url}: {got:?}"),
        }
    }
}

#[test]
fn the_originals_file_is_read_and_mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("functions.json");
    let read_text = |text: &str| {
        std::fs::write(&path, text).unwrap();
        read(&path, Path::new("yamls"))
    };
    let all = read_text(
        r#"{"functions":[{"name":"helloworld","file":"helloworld.yaml","count":1,
        "eventing":false,"applyScript":""},{"name":"pyaes","file":"pyaes.yaml","count":2}]}"#,
    )
    .unwrap();
    let names: Vec<&str> = all.iter().map(|wanted| wanted.name.as_str()).collect();
    assert_eq!(names, ["helloworld-0", "pyaes-0", "pyaes-1"]);
    assert_eq!(all[2].manifest, Path::new("yamls/pyaes.yaml"));
    let one =
        |more: &str| format!(r#"{{"functions":[{{"name":"a","file":"f","count":1{more}}}]}}"#);
    let eventing = read_text(&one(r#","eventing":true"#)).unwrap();
    assert!(eventing[0].eventing && !all[0].eventing);
    std::fs::write(dir.path().join("f"), MANIFEST).unwrap();
    let eventing = [Wanted { manifest: dir.path().join("f"), ..eventing[0].clone() }];
    let done = deploy(&deployment(dir.path()), &Fake::default(), &eventing);
    assert!(done[0].1.as_ref().unwrap().eventing, "its endpoint says so: {done:?}");
    for (text, said) in [
        (r#"{"functions":[]}"#.to_owned(), "0 services"),
        (one(r#","cuont":1"#), "is no list of functions"),
        (one(r#"},{"name":"a","file":"g","count":1"#), "a-0 is listed twice"),
    ] {
        let error = read_text(&text).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}
