//! The kinds of objects that the API shows.

/// A kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Service,
    Configuration,
    Route,
    Revision,
    Pod,
    Namespace,
    Event,
    ConfigMap,
    Secret,
    Broker,
    Trigger,
}

/// Group and version of Knative's kinds.
pub(crate) const SERVING: &str = "serving.knative.dev/v1";

/// Group and version of its eventing kinds.
pub(crate) const EVENTING: &str = "eventing.knative.dev/v1";

impl Kind {
    /// Every kind.
    pub(crate) const ALL: [Self; 11] = [
        Self::Service,
        Self::Configuration,
        Self::Route,
        Self::Revision,
        Self::Pod,
        Self::Namespace,
        Self::Event,
        Self::ConfigMap,
        Self::Secret,
        Self::Broker,
        Self::Trigger,
    ];

    /// Its place in [`Kind::ALL`].
    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    /// As `kind` says it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Configuration => "Configuration",
            Self::Route => "Route",
            Self::Revision => "Revision",
            Self::Pod => "Pod",
            Self::Namespace => "Namespace",
            Self::Event => "Event",
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
            Self::Broker => "Broker",
            Self::Trigger => "Trigger",
        }
    }

    /// As paths say it.
    pub(crate) const fn plural(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::Configuration => "configurations",
            Self::Route => "routes",
            Self::Revision => "revisions",
            Self::Pod => "pods",
            Self::Namespace => "namespaces",
            Self::Event => "events",
            Self::ConfigMap => "configmaps",
            Self::Secret => "secrets",
            Self::Broker => "brokers",
            Self::Trigger => "triggers",
        }
    }

    /// As `apiVersion` says it.
    pub(crate) const fn api_version(self) -> &'static str {
        match self {
            Self::Service | Self::Configuration | Self::Route | Self::Revision => SERVING,
            Self::Pod | Self::Namespace | Self::Event | Self::ConfigMap | Self::Secret => "v1",
            Self::Broker | Self::Trigger => EVENTING,
        }
    }

    /// The group, empty for the core's.
    pub(crate) const fn group(self) -> &'static str {
        match self {
            Self::Service | Self::Configuration | Self::Route | Self::Revision => {
                "serving.knative.dev"
            }
            Self::Pod | Self::Namespace | Self::Event | Self::ConfigMap | Self::Secret => "",
            Self::Broker | Self::Trigger => "eventing.knative.dev",
        }
    }

    /// Plural and group, as messages say them.
    pub(crate) fn qualified(self) -> String {
        match self.group() {
            "" => self.plural().to_owned(),
            group => format!("{}.{group}", self.plural()),
        }
    }

    /// Whether its objects belong to a namespace.
    pub(crate) const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_the_place() {
        for (place, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), place, "{kind:?}");
        }
    }
}
