//! Steps with progress: what is going on, for how long, and what it ended with.

use std::io::{IsTerminal as _, Write as _};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// Says when the user wants to stop.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt(Arc<Mutex<Receiver<()>>>);

impl Interrupt {
    /// Waits so long; an error when the user interrupts meanwhile.
    pub(crate) fn wait(&self, span: Duration) -> anyhow::Result<()> {
        let receiver = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match receiver.recv_timeout(span) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => anyhow::bail!("interrupted"),
        }
    }
}

/// Turns SIGINT, SIGTERM and SIGHUP into an [`Interrupt`], so that guards are dropped.
pub(crate) fn catch_signals() -> anyhow::Result<Interrupt> {
    let (sender, receiver) = channel();
    ctrlc::set_handler(move || {
        println!("\ninterrupted: stopping what was started");
        // Nobody listening means that the demo is about to end anyway.
        let _ = sender.send(());
    })
    .context("cannot catch signals")?;
    Ok(Interrupt(Arc::new(Mutex::new(receiver))))
}

/// Runs steps one after another and shows them.
#[derive(Debug)]
pub(crate) struct Steps {
    interrupt: Interrupt,
}

/// A running step: say what it is doing.
#[derive(Debug)]
pub(crate) struct Step {
    told: Sender<String>,
    pub(crate) interrupt: Interrupt,
}

impl Step {
    /// Shows what the step is doing now.
    pub(crate) fn say(&self, what: &str) {
        // The painter outlives the step; a lost message would only be a lost word.
        let _ = self.told.send(what.to_owned());
    }
}

impl Steps {
    pub(crate) fn new(interrupt: Interrupt) -> Self {
        Self { interrupt }
    }

    /// Runs a step; its label goes into the error.
    pub(crate) fn run<T>(
        &mut self,
        label: &str,
        work: impl FnOnce(&Step) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.interrupt.wait(Duration::ZERO)?;
        let (told, words) = channel();
        let step = Step { told, interrupt: self.interrupt.clone() };
        let begun = Instant::now();
        let shown = label.to_owned();
        let painter = thread::spawn(move || paint(&shown, begun, &words));
        let done = work(&step);
        drop(step);
        let last = painter.join().unwrap_or_default();
        let seconds = begun.elapsed().as_secs_f64();
        match &done {
            Ok(_) => println!("{}ok    {label:<34} {seconds:>6.1} s  {last}", clear()),
            Err(_) => println!("{}FAIL  {label:<34} {seconds:>6.1} s  {last}", clear()),
        }
        done.with_context(|| format!("{label} failed"))
    }
}

fn clear() -> &'static str {
    if std::io::stdout().is_terminal() { "\r\x1b[K" } else { "" }
}

/// Without a terminal, how often a step that says nothing new shows that it goes on.
const SIGN_OF_LIFE: u64 = 15;

/// Shows the label once it takes over a second, then every word; returns the last word.
fn paint(label: &str, begun: Instant, words: &Receiver<String>) -> String {
    let terminal = std::io::stdout().is_terminal();
    let mut last = String::new();
    let mut shown = None;
    loop {
        match words.recv_timeout(Duration::from_secs(1)) {
            Ok(word) => last = word,
            Err(RecvTimeoutError::Disconnected) => return last,
            Err(RecvTimeoutError::Timeout) => {
                let seconds = begun.elapsed().as_secs();
                if terminal {
                    print!("\r\x1b[K..    {label:<34} {seconds:>4} s    {last}");
                    let _ = std::io::stdout().flush();
                } else if shown.as_ref() != Some(&last) || seconds.is_multiple_of(SIGN_OF_LIFE) {
                    println!("..    {label:<34} {seconds:>4} s    {last}");
                    shown = Some(last.clone());
                }
            }
        }
    }
}
