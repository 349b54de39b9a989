//! `hello`: greets whoever is named, over HTTP and over gRPC.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use vhive_function::{Function, Reply, Request};

struct Hello;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    #[serde(default = "world")]
    name: String,
}

#[derive(Serialize)]
struct Output {
    message: String,
}

impl Function for Hello {
    const NAME: &'static str = "hello";
    const HELP: &'static str = r#"POST / with {"name":"world"} replies {"message":"Hello, world!"}; helloworld.Greeter/SayHello does the same over gRPC"#;

    async fn call(&self, request: Request) -> Reply {
        match request.json::<Input>() {
            Ok(input) => Reply::json(&Output { message: greeting(&input.name) }),
            Err(reply) => reply,
        }
    }

    fn greet(&self, name: &str) -> Option<String> {
        Some(greeting(name))
    }
}

/// # Source
/// vHive `function-images/helloworld`: `record` and `replay` name the inputs of an experiment.
fn greeting(name: &str) -> String {
    match name {
        "record" | "replay" => format!("Hello, {name}_response!"),
        _ => format!("Hello, {name}!"),
    }
}

fn world() -> String {
    "world".to_owned()
}

fn main() -> ExitCode {
    vhive_function::run(Hello)
}
