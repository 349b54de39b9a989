use super::*;

struct World(Vec<(DataKey, Arc<StoredData>)>);

impl Lookup for World {
    fn find(&self, key: &DataKey) -> Option<Arc<StoredData>> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, object)| Arc::clone(object))
    }
}

/// Keys with their values.
type Values<'a> = &'a [(&'a str, &'a [u8])];

fn world(objects: &[(DataKind, &str, Values<'_>)]) -> World {
    let each = objects.iter().map(|(kind, name, values)| {
        let mut object = StoredData::empty(*kind, "default", name);
        for (key, value) in *values {
            object.data.insert((*key).to_owned(), Content::of(value.to_vec()));
        }
        (DataKey::new(*kind, "default", name), Arc::new(object))
    });
    World(each.collect())
}

fn of(kind: DataKind, name: &str, optional: bool) -> Reference {
    Reference { kind, name: name.to_owned(), optional }
}

fn key(name: &str, of: Reference, key: &str) -> Variable {
    Variable { name: name.to_owned(), value: VariableValue::Key(of, key.to_owned()) }
}

fn literal(name: &str, value: &str) -> Variable {
    Variable { name: name.to_owned(), value: VariableValue::Literal(value.to_owned()) }
}

fn pairs(resolved: &Resolved) -> Vec<(&str, &str)> {
    resolved.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[test]
fn env_goes_before_env_from_and_later_before_earlier() {
    let world = world(&[
        (DataKind::ConfigMap, "one", &[("A", b"1"), ("B", b"1"), ("C", b"1")]),
        (DataKind::Secret, "two", &[("B", b"2"), ("C", b"2")]),
    ]);
    let inputs = Inputs {
        from: vec![
            EnvFrom { of: of(DataKind::ConfigMap, "one", false), prefix: String::new() },
            EnvFrom { of: of(DataKind::Secret, "two", false), prefix: String::new() },
            EnvFrom { of: of(DataKind::Secret, "two", false), prefix: "P_".to_owned() },
            EnvFrom { of: of(DataKind::Secret, "none", true), prefix: String::new() },
        ],
        env: vec![literal("C", "$(A)"), key("D", of(DataKind::Secret, "two", false), "B")],
        mounts: Vec::new(),
    };
    let resolved = inputs.resolve("default", &world).unwrap();
    let wanted = [("A", "1"), ("B", "2"), ("P_B", "2"), ("P_C", "2"), ("C", "$(A)"), ("D", "2")];
    assert_eq!(pairs(&resolved), wanted);
    assert!(
        inputs.mentions(DataKind::Secret, "none") && !inputs.mentions(DataKind::ConfigMap, "two")
    );
}

#[test]
fn a_value_is_not_expanded_however_it_looks() {
    let world = world(&[(DataKind::Secret, "s", &[("k", b"$(HOME) costs $5")])]);
    let of = of(DataKind::Secret, "s", false);
    let inputs = Inputs { env: vec![key("A", of, "k")], ..Inputs::default() };
    let resolved = inputs.resolve("default", &world).unwrap();
    assert_eq!(pairs(&resolved), [("A", "$$(HOME) costs $$5")]);
}

#[test]
fn what_is_missing_is_said_in_the_kubelets_words() {
    let world = world(&[(DataKind::Secret, "s", &[("k", b"a\0b"), ("bin", &[0xff])])]);
    let told = |variable: Variable| {
        let inputs = Inputs { env: vec![variable], ..Inputs::default() };
        inputs.resolve("default", &world).map_err(|missing| missing.to_string())
    };
    let secret = |optional| of(DataKind::Secret, "s", optional);
    let none = |optional| of(DataKind::ConfigMap, "none", optional);
    assert_eq!(told(key("A", none(false), "k")).unwrap_err(), "configmap \"none\" not found");
    assert_eq!(
        told(key("A", secret(false), "x")).unwrap_err(),
        "couldn't find key x in Secret default/s"
    );
    assert_eq!(told(key("A", none(true), "k")).unwrap(), Resolved::default());
    assert_eq!(told(key("A", secret(true), "x")).unwrap(), Resolved::default());
    for unfit in ["k", "bin"] {
        let text = told(key("A", secret(false), unfit)).unwrap_err();
        assert!(text.contains("cannot be a variable") && !text.contains("a\0b"), "{text}");
    }
}

#[test]
fn files_are_the_keys_or_the_items_and_the_later_source_wins() {
    let world = world(&[
        (DataKind::ConfigMap, "one", &[("a", b"1"), ("b", &[0xff])]),
        (DataKind::Secret, "two", &[("a", b"2")]),
    ]);
    let item =
        |key: &str, path: &str, mode| Item { key: key.to_owned(), path: path.to_owned(), mode };
    let source = |of, items| Source { of, items, mode: 0o644 };
    let mount = |sources| Inputs {
        mounts: vec![Mount { path: "/etc/x".to_owned(), sources }],
        ..Inputs::default()
    };
    let resolve = |sources| mount(sources).resolve("default", &world);
    let one = |items| source(of(DataKind::ConfigMap, "one", false), items);
    let files = resolve(vec![one(Vec::new())]).unwrap().volumes.remove(0).files;
    let found: Vec<_> =
        files.iter().map(|f| (f.path.as_str(), f.mode, f.content.bytes())).collect();
    assert_eq!(found[1].2.as_deref(), Some([0xff].as_slice()));
    assert_eq!((found[0].0, found[0].1, found.len()), ("a", 0o644, 2));

    let two = source(of(DataKind::Secret, "two", false), vec![item("a", "deep/x", Some(0o400))]);
    let both = resolve(vec![one(vec![item("a", "deep/x", None)]), two]).unwrap();
    let [file] = both.volumes[0].files.as_slice() else { panic!("one file: {both:?}") };
    assert_eq!((file.mode, file.content.bytes().as_deref()), (0o400, Some(b"2".as_slice())));

    let lacks = resolve(vec![one(vec![item("x", "x", None)])]).unwrap_err();
    assert_eq!(lacks.to_string(), "couldn't find key x in ConfigMap default/one");
    let none = source(of(DataKind::Secret, "none", true), Vec::new());
    assert_eq!(resolve(vec![none]).unwrap().volumes[0].files, []);
}

#[test]
fn more_than_a_frame_holds_is_refused() {
    let much = vec![b'x'; MOST];
    let world = world(&[(DataKind::ConfigMap, "much", &[("a", &much)])]);
    let of = of(DataKind::ConfigMap, "much", false);
    let inputs = Inputs { env: vec![key("A", of, "a")], ..Inputs::default() };
    assert!(matches!(inputs.resolve("default", &world), Err(Missing::Size(_))));
}

#[test]
fn a_large_value_that_is_named_often_is_refused_before_it_is_copied_often() {
    let large = vec![b'x'; MOST / 2 + 1];
    let world = world(&[(DataKind::ConfigMap, "m", &[("k", large.as_slice())])]);
    let of = || of(DataKind::ConfigMap, "m", false);
    let env: Vec<Variable> = (0..1000).map(|n| key(&format!("A{n}"), of(), "k")).collect();
    let once = Inputs { env: env[..1].to_vec(), ..Inputs::default() };
    assert!(once.resolve("default", &world).is_ok());
    let often = Inputs { env, ..Inputs::default() };
    // The second copy is one too many already.
    assert_eq!(often.resolve("default", &world), Err(Missing::Size(2 * large.len() + 2)));
}
