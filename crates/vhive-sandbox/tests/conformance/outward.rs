//! Promises about what a function reaches of the world, by name and by address. Each is checked on
//! a host of its own that has an "internet" (see `lab`).

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::Arc;

use vhive_api::MemoryMode;
use vhive_sandbox::network::NetworkConfig;

use crate::lab::{LAN, Lab, METADATA, OUTSIDE, ip};
use crate::promises::HTTPD;
use crate::restored;
use crate::site::{Booted, Site, answer, get};

/// A neighbour of [`LAN`]'s that no rule allows.
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 3);

/// The one name that the name server knows; it means [`OUTSIDE`].
const NAME: &str = "function.example";

/// Names are resolved by the server that the node is configured with, and what the rules allow is
/// reached, and nothing else.
pub(crate) fn what_is_allowed_is_reached_by_name(site: &Site) {
    in_a_lab(site, |world, site| {
        let booted = site.boot(&site.spec(HTTPD));
        booted.listening();
        world.expect_reached(&booted);
    });
}

/// Likewise a clone, in a slot that its original never had.
pub(crate) fn a_clone_reaches_what_is_allowed(site: &Site) {
    in_a_lab(site, |world, site| {
        let mut spec = site.spec(HTTPD);
        spec.uses.snapshots = true;
        let mut booted = site.boot(&spec);
        booted.listening();
        let dir = tempfile::tempdir().expect("a directory");
        let from = restored::snapshot(&mut booted, dir.path());
        drop(booted);
        let clone = restored::clone(site, &site.spec(HTTPD), &from, MemoryMode::File);
        world.expect_reached(&clone);
    });
}

/// Servers of the world, by their ports.
struct World {
    outside: u16,
    lan: u16,
    other: u16,
    metadata: u16,
}

/// Makes a host, a world around it, and a site on it.
fn in_a_lab(site: &Site, body: impl FnOnce(&World, &Site) + Send) {
    std::thread::scope(|scope| {
        // The lab takes its thread along.
        let ran = scope.spawn(|| {
            let lab = Lab::new("conformance").expect("looked at before");
            lab.outside(|| ip(&format!("address add {OTHER}/24 dev lan0p")));
            let world = World::around(&lab);
            let config = NetworkConfig {
                dns: Some(vec![OUTSIDE]),
                allow: vec![format!("{LAN}/32").parse().expect("a network")],
                ..NetworkConfig::default()
            };
            let there = Site::on(Arc::clone(&site.runtime), true, config);
            let mut there = there.expect("as the first");
            there.uses = site.uses;
            body(&world, &there);
            there.expect_no_traces();
        });
        if let Err(panic) = ran.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

impl World {
    fn around(lab: &Lab) -> Self {
        let serve = |ip: Ipv4Addr, text| {
            let listener = lab.outside(move || TcpListener::bind((ip, 0)).expect("a listener"));
            let port = listener.local_addr().expect("bound").port();
            answer(listener, text);
            port
        };
        let names = lab.outside(|| UdpSocket::bind((OUTSIDE, 53)).expect("a name server"));
        std::thread::spawn(move || {
            let mut packet = [0; 512];
            while let Ok((length, from)) = names.recv_from(&mut packet) {
                if let Some(reply) = resolve(&packet[..length]) {
                    // Whoever is gone needs no answer.
                    let _ = names.send_to(&reply, from);
                }
            }
        });
        Self {
            outside: serve(OUTSIDE, "outside\n"),
            lan: serve(LAN, "the LAN\n"),
            other: serve(OTHER, "the LAN's other\n"),
            metadata: serve(METADATA, "secret\n"),
        }
    }

    fn expect_reached(&self, booted: &Booted) {
        let cases = [
            (NAME.to_owned(), self.outside, "outside\n"),
            (OUTSIDE.to_string(), self.outside, "outside\n"),
            (LAN.to_string(), self.lan, "the LAN\n"),
            (OTHER.to_string(), self.other, "unreachable\n"),
            (METADATA.to_string(), self.metadata, "unreachable\n"),
            ("nobody.example".to_owned(), self.outside, "unreachable\n"),
        ];
        for (to, port, answer) in cases {
            let reply = get(booted.endpoint(), &format!("/cgi-bin/fetch?{to}+{port}"));
            assert!(reply.ends_with(answer), "{to}: {reply}");
        }
    }
}

/// Answers a query for an address.
///
/// # Source
/// RFC 1035, section 4.1
fn resolve(query: &[u8]) -> Option<Vec<u8>> {
    let (id, question) = (query.get(..2)?, query.get(12..)?);
    let mut labels = Vec::new();
    let mut at = 0;
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(std::str::from_utf8(question.get(at..at + length)?).ok()?);
        at += length;
    }
    let question = question.get(..at + 4)?;
    let known = labels.join(".") == NAME;
    // A record of another type than A there is not.
    let answered = known && question[at..at + 2] == [0, 1];
    let code = if known { 0 } else { 3 };
    let mut reply = [id, &[0x81, 0x80 | code, 0, 1, 0, u8::from(answered), 0, 0, 0, 0]].concat();
    reply.extend(question);
    if answered {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(OUTSIDE.octets());
    }
    Some(reply)
}
