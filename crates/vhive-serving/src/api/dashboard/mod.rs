//! The dashboard: one page, its style and its script, and the view that it reads once a second.
//!
//! The page holds no data and needs no token; the view needs it like every other. The token comes to
//! the page in the URL's fragment, which browsers do not send. Names, labels and messages are other
//! people's text: the script writes them as text only, and the policy in the page's headers refuses
//! whatever would be markup all the same.

mod overview;
mod recent;

use axum::Router;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::{HeaderName, header};

pub(super) use self::overview::overview;

/// What the page is made of: path, type, content.
const FILES: [(&str, &str, &str); 6] = [
    ("/dashboard", "text/html; charset=utf-8", include_str!("page.html")),
    ("/dashboard/page.css", "text/css; charset=utf-8", include_str!("page.css")),
    ("/dashboard/page.js", "text/javascript; charset=utf-8", include_str!("page.js")),
    ("/dashboard/sections.js", "text/javascript; charset=utf-8", include_str!("sections.js")),
    ("/dashboard/draw.js", "text/javascript; charset=utf-8", include_str!("draw.js")),
    ("/dashboard/icon.svg", "image/svg+xml", include_str!("icon.svg")),
];

/// Only our own files, requests only to where the page came from, nothing inline, no framing, and
/// no text turned into markup or code.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

/// Whether a path is a part of the page itself.
pub(super) fn is_page(path: &str) -> bool {
    FILES.iter().any(|(known, ..)| *known == path)
}

/// Routes of the page itself.
pub(super) fn pages<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, content)| {
        router.route(path, get(move || async move { file(kind, content) }))
    })
}

fn file(kind: &'static str, content: &'static str) -> Response {
    let headers: [(HeaderName, &str); 8] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        // Another version of the node brings another page.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, content).into_response()
}
