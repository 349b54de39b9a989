use super::*;

#[test]
fn failures_have_a_time_and_something_to_do() {
    let fail = |fail: &str, instances: &str| {
        let all = |text: &str| {
            if text.is_empty() { Vec::new() } else { vec![text.to_owned()] }
        };
        Fail { fail: all(fail), fail_instances: all(instances) }.failures()
    };
    let all = fail("30s:kill -9 $(cat a:b)", "5:hello").expect("failures");
    let wanted = [
        (Duration::from_secs(30), Act::Command("kill -9 $(cat a:b)".to_owned())),
        (Duration::from_secs(5), Act::Instances("hello".to_owned())),
    ];
    assert_eq!(all.into_iter().map(|one| (one.at, one.act)).collect::<Vec<_>>(), wanted);
    for bad in ["30s", "soon:x", "-3:x", "3:"] {
        assert!(fail(bad, "").is_err() && fail("", bad).is_err(), "{bad}");
    }
}

#[test]
fn replies_are_waited_for_as_long_as_a_request_may_take() {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        to: To,
    }
    let seconds = |line: &str, experiment: Option<u64>| {
        let words = ["x"].into_iter().chain(line.split_whitespace());
        let to = <Line as clap::Parser>::parse_from(words).to;
        let mut load = Load::to(Vec::new());
        to.wait(&mut load, experiment.map(Duration::from_secs));
        (load.patience.as_secs(), load.drain.as_secs())
    };
    for (line, experiment, wanted) in [
        ("", None, (30, 60)),
        ("--timeout 60s", None, (60, 120)),
        ("", Some(900), (900, 1800)),
        ("--timeout 3s", Some(900), (3, 6)),
        ("--timeout 60s --drain 5", None, (60, 5)),
    ] {
        assert_eq!(seconds(line, experiment), wanted, "{line:?} {experiment:?}");
    }
}

#[test]
fn what_a_sweep_does_nothing_with_is_refused_by_name() {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        sweep: SweepArgs,
    }
    let check = |line: &str| {
        let words = ["x"].into_iter().chain(line.split_whitespace());
        <Line as clap::Parser>::parse_from(words).sweep.check()
    };
    check("--parquet --busy").expect("they have an effect");
    for line in ["--records", "--profile", "--latf mine.csv", "--durf mine.csv"] {
        let why = check(line).expect_err("refused").to_string();
        assert!(line.starts_with(why.split(' ').next().unwrap_or("-")), "{line}: {why}");
    }
}

#[test]
fn a_collector_of_spans_is_refused_only_where_there_would_be_spans() {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        common: Common,
    }
    let spans = |line: &str| {
        let words = ["x"].into_iter().chain(line.split_whitespace());
        <Line as clap::Parser>::parse_from(words).common.spans()
    };
    for line in ["", "--trace=false", "--trace=false --zipkin http://z/x", "--zipkin http://z/x"] {
        spans(line).expect("what scripts for the original pass");
    }
    for line in ["--trace", "--trace=true --zipkin http://z/x"] {
        spans(line).expect_err("no spans");
    }
}

#[test]
fn numbers_of_clients_that_make_no_run_are_refused() {
    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        closed: ClosedArgs,
    }
    let parse = |text: &str| {
        <Line as clap::Parser>::try_parse_from(["x".to_owned(), format!("--clients={text}")])
    };
    assert_eq!(parse("2000").expect("taken").closed.clients, 2000);
    for bad in ["0", "1000001", "1000000000000", "-1"] {
        let why = parse(bad).expect_err("refused").to_string();
        assert!(why.contains("--clients"), "{why}");
    }
}

#[test]
fn bare_numbers_count_seconds() {
    for (text, millis) in [("5", 5000), ("0.5", 500), ("30s", 30_000), ("2m", 120_000)] {
        assert_eq!(text.parse(), Ok(Seconds(Duration::from_millis(millis))), "{text}");
    }
    for bad in ["-1", "x", "1y", "inf", "1e19", "1e9", "315360001", "99999999999s"] {
        assert!(bad.parse::<Seconds>().is_err(), "{bad}");
    }
}
