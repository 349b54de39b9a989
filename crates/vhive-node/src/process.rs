//! Which process to run: the image's configuration with the revision's changes applied.
//!
//! # Source
//! OCI image-spec, `config.md`; Kubernetes, "Define a Command and Arguments for a Container" and
//! "Define Dependent Environment Variables"; Knative runtime contract (`PORT`, `K_*`); Knative Eventing,
//! `pkg/apis/sources/v1/sinkbinding_lifecycle.go` (`K_SINK`).

use vhive_api::Revision;
use vhive_api::guest::Process;
use vhive_image::ImageConfig;

/// What a search path is if nobody states one.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why there is no process to run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// Neither the image nor the revision names a program.
    #[error("image {0} names no entrypoint or command; state `command` in the service")]
    NoCommand(String),
    /// A text that is handed to the system as a C string holds a zero byte.
    #[error("{0} contains a zero byte")]
    ZeroByte(String),
    /// The image's stop signal is none.
    #[error(
        "the image wants to be stopped by {0:?}, which is no signal: rebuild it with e.g. SIGTERM"
    )]
    StopSignal(String),
    /// What `$(NAME)` stands for adds up to too much.
    #[error("command, arguments and variables take more than {MOST} bytes once expanded")]
    TooLong,
}

/// Bytes that the revision's command, arguments and variables may take together: with the image's,
/// less than a frame of the guest contract.
const MOST: usize = 960 << 10;

/// Puts the process together.
///
/// `command` replaces the image's entrypoint and arguments, `args` replaces its arguments; the
/// revision's variables override the image's, and the injected ones override both. `$(NAME)` in
/// the revision's command, arguments and values is replaced by variables that the *revision* (or
/// the platform) sets, in a value only by earlier ones; `$$` is a literal dollar sign, and what is
/// not known stays as it is.
///
/// # Errors
/// [`ProcessError`].
pub fn process(image: &ImageConfig, revision: &Revision) -> Result<Process, ProcessError> {
    let mut left = MOST;
    let vars = variables(revision, &mut left).ok_or(ProcessError::TooLong)?;
    let mut expanded = |texts: &[String]| -> Result<Vec<String>, ProcessError> {
        let mut each = texts.iter();
        each.try_fold(Vec::new(), |mut all, text| {
            all.push(expand(text, &vars, &mut left).ok_or(ProcessError::TooLong)?);
            Ok(all)
        })
    };
    let mut args: Vec<String> = match (revision.command.is_empty(), revision.args.is_empty()) {
        (false, _) => expanded(&revision.command)?,
        (true, _) => image.entrypoint.clone(),
    };
    match (revision.command.is_empty(), revision.args.is_empty()) {
        (_, false) => args.extend(expanded(&revision.args)?),
        (true, true) => args.extend(image.cmd.iter().cloned()),
        (false, true) => {}
    }
    if args.first().is_none_or(String::is_empty) {
        return Err(ProcessError::NoCommand(revision.image.clone()));
    }
    let process = Process {
        args,
        env: environment(image, &vars),
        user: image.user.clone(),
        cwd: revision.working_dir.clone().unwrap_or_else(|| image.working_dir.clone()),
        stop_signal: image.stop_signal.clone().unwrap_or_default(),
        volumes: revision.volumes.clone(),
        gateway_names: revision.calls.names.clone(),
    };
    if vhive_api::inside::stop_signal(&process.stop_signal).is_none() {
        return Err(ProcessError::StopSignal(process.stop_signal));
    }
    let texts = process.args.iter().chain(&process.env).chain([&process.user, &process.cwd]);
    if let Some(bad) = texts.into_iter().find(|text| text.contains('\0')) {
        return Err(ProcessError::ZeroByte(format!("{bad:?}")));
    }
    Ok(process)
}

/// The revision's variables, expanded, then the injected ones; the last of a name counts. None if
/// they take more than is left.
fn variables(revision: &Revision, left: &mut usize) -> Option<Vec<(String, String)>> {
    let mut vars: Vec<(String, String)> = Vec::new();
    for (name, value) in &revision.env {
        let value = expand(value, &vars, left)?;
        set(&mut vars, name, value);
    }
    let injected = [
        ("PORT", revision.port.to_string()),
        ("K_SERVICE", revision.service_label().to_owned()),
        ("K_CONFIGURATION", revision.service.clone()),
        ("K_REVISION", revision.key.name.clone()),
    ];
    for (name, value) in injected {
        set(&mut vars, name, value);
    }
    if let Some(sink) = &revision.calls.sink {
        set(&mut vars, "K_SINK", sink.clone());
    }
    Some(vars)
}

fn set(vars: &mut Vec<(String, String)>, name: &str, value: String) {
    match vars.iter_mut().find(|(known, _)| known == name) {
        Some((_, known)) => *known = value,
        None => vars.push((name.to_owned(), value)),
    }
}

fn environment(image: &ImageConfig, vars: &[(String, String)]) -> Vec<String> {
    let mut env: Vec<(String, String)> = Vec::new();
    for (name, value) in image.env.iter().chain(vars) {
        set(&mut env, name, value.clone());
    }
    if !env.iter().any(|(name, _)| name == "PATH") {
        env.insert(0, ("PATH".to_owned(), DEFAULT_PATH.to_owned()));
    }
    env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// Replaces `$(NAME)`, and `$$` by a dollar sign; takes the result's length off `left`, and gives up
/// when there is no more.
fn expand(text: &str, vars: &[(String, String)], left: &mut usize) -> Option<String> {
    let mut out = String::new();
    let mut push = |part: &str| {
        *left = left.checked_sub(part.len())?;
        out.push_str(part);
        Some(())
    };
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        push(&rest[..at])?;
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('$') {
            push("$")?;
            rest = after;
        } else if let Some((name, after)) =
            after.strip_prefix('(').and_then(|inner| inner.split_once(')'))
        {
            match vars.iter().find(|(known, _)| known == name) {
                Some((_, value)) => push(value)?,
                None => push(&rest[at..rest.len() - after.len()])?,
            }
            rest = after;
        } else {
            push("$")?;
            rest = after;
        }
    }
    push(rest)?;
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::revision;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: texts(&["/entry", "-e"]),
            cmd: texts(&["$(PORT)", "cmd"]),
            env: vec![("A".to_owned(), "image".to_owned()), ("B".to_owned(), "image".to_owned())],
            user: "nobody".to_owned(),
            working_dir: "/app".to_owned(),
            stop_signal: Some("SIGINT".to_owned()),
            exposed_ports: Vec::new(),
        }
    }

    #[test]
    fn command_replaces_both_and_args_replaces_the_arguments() {
        // Source: the table in Kubernetes' page on commands and arguments.
        let table: [(&[&str], &[&str], &[&str]); 4] = [
            (&[], &[], &["/entry", "-e", "$(PORT)", "cmd"]),
            (&["/c"], &[], &["/c"]),
            (&[], &["a", "$(PORT)"], &["/entry", "-e", "a", "8080"]),
            (&["/c", "$(K_REVISION)"], &["a"], &["/c", "one", "a"]),
        ];
        for (command, args, wanted) in table {
            let mut revision = revision("one");
            (revision.command, revision.args) = (texts(command), texts(args));
            let process = process(&image(), &revision).expect("a process");
            assert_eq!(process.args, texts(wanted));
            assert_eq!((process.user.as_str(), process.cwd.as_str()), ("nobody", "/app"));
            assert_eq!(process.stop_signal, "SIGINT");
        }
    }

    #[test]
    fn an_image_that_wants_to_be_stopped_by_no_signal_is_refused_before_it_is_started() {
        let with = |signal: Option<&str>| {
            let image = ImageConfig { stop_signal: signal.map(str::to_owned), ..image() };
            process(&image, &revision("one"))
        };
        for fit in [None, Some("SIGRTMIN+3"), Some("37"), Some("SIGCLD")] {
            assert!(with(fit).is_ok(), "{fit:?}");
        }
        assert_eq!(with(Some("SIGNO")), Err(ProcessError::StopSignal("SIGNO".to_owned())));
    }

    #[test]
    fn variables_are_merged_in_order_and_the_platforms_win() {
        let mut revision = revision("one");
        let env = [("B", "mine"), ("C", "$(B)-$(A)-$(D)"), ("D", "late"), ("PORT", "1")];
        revision.env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        revision.working_dir = Some("/else".to_owned());
        let process = process(&image(), &revision).expect("a process");
        let wanted = [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "A=image",
            "B=mine",
            "C=mine-$(A)-$(D)",
            "D=late",
            "PORT=8080",
            "K_SERVICE=test",
            "K_CONFIGURATION=test",
            "K_REVISION=one",
        ];
        assert_eq!(process.env, texts(&wanted));
        assert_eq!(process.cwd, "/else");
    }

    #[test]
    fn a_sink_is_the_platforms_variable() {
        let mut revision = revision("one");
        revision.env = vec![("K_SINK".to_owned(), "http://elsewhere".to_owned())];
        revision.args = texts(&["$(K_SINK)"]);
        let own = process(&image(), &revision).expect("a process");
        assert_eq!(own.args[2], "http://elsewhere", "without a sink it is the user's");
        let url = "http://a.b.svc.cluster.local".to_owned();
        revision.calls.sink = Some(url.clone());
        revision.calls.names = texts(&["a.b.svc.cluster.local"]);
        let process = process(&image(), &revision).expect("a process");
        assert_eq!(process.args[2], url);
        assert!(process.env.contains(&format!("K_SINK={url}")));
        assert_eq!(process.gateway_names, revision.calls.names);
    }

    #[test]
    fn a_configuration_without_a_service_tells_its_functions_of_none() {
        let mut revision = revision("one");
        revision.standalone = true;
        let process = process(&image(), &revision).expect("a process");
        for wanted in ["K_SERVICE=", "K_CONFIGURATION=test", "K_REVISION=one"] {
            assert!(process.env.iter().any(|one| one == wanted), "{wanted}: {:?}", process.env);
        }
    }

    #[test]
    fn references_are_expanded_as_kubernetes_does() {
        let vars = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())];
        let table = [
            ("$(A)$(A)", "11"),
            ("$(B)", "$(A)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(X)", "$(X)"),
            ("$(A", "$(A"),
            ("$A ${A} $", "$A ${A} $"),
            ("$()", "$()"),
            ("é$(A)é", "é1é"),
        ];
        for (text, wanted) in table {
            assert_eq!(expand(text, &vars, &mut 1000).as_deref(), Some(wanted), "{text}");
        }
    }

    #[test]
    fn nothing_to_run_and_zero_bytes_are_refused() {
        let empty = ImageConfig::default();
        let error = process(&empty, &revision("one")).expect_err("no command");
        assert_eq!(error, ProcessError::NoCommand("dev.local/one:latest".to_owned()));
        let mut bad = revision("one");
        bad.args = texts(&["a\0b"]);
        assert!(matches!(process(&image(), &bad), Err(ProcessError::ZeroByte(_))));
    }

    #[test]
    fn what_stands_for_too_much_is_refused_before_it_is_made() {
        let mut bomb = revision("one");
        bomb.env = vec![("E0".to_owned(), "xxxxxxxxxx".to_owned())];
        for level in 1..6 {
            let value = format!("$(E{})", level - 1).repeat(1000);
            bomb.env.push((format!("E{level}"), value));
        }
        assert_eq!(process(&image(), &bomb), Err(ProcessError::TooLong));
        let mut twice = revision("one");
        twice.env = vec![("A".to_owned(), "x".repeat(MOST / 2))];
        assert!(process(&image(), &twice).is_ok());
        twice.args = texts(&["$(A)", "$(A)"]);
        assert_eq!(process(&image(), &twice), Err(ProcessError::TooLong));
    }

    proptest::proptest! {
        #[test]
        fn expanding_never_panics_and_keeps_what_has_no_dollar(text in "[a-c$() é]{0,30}") {
            let expanded = expand(&text, &[("a".to_owned(), "x".to_owned())], &mut usize::MAX.clone());
            if !text.contains('$') {
                assert_eq!(expanded, Some(text));
            }
        }
    }
}
