//! Media types: what a client accepts and what we answer with.

/// The shape of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The objects themselves.
    #[default]
    Object,
    /// `meta.k8s.io` Table.
    Table,
    /// PartialObjectMetadata, or a list of them.
    Partial,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) shape: Shape,
    pub(crate) yaml: bool,
}

/// What errors name as acceptable, in upstream's order.
pub(crate) const ACCEPTED: &[&str] = &["application/json", "application/yaml"];

/// One element of an Accept header.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Media<'a> {
    pub(crate) essence: &'a str,
    pub(crate) parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl Media<'_> {
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }
}

/// The elements of an Accept header, best first.
pub(crate) fn parse(header: &str) -> Vec<Media<'_>> {
    let mut media: Vec<Media<'_>> = header
        .split(',')
        .map(str::trim)
        .filter(|element| !element.is_empty())
        .map(|element| {
            let mut parts = element.split(';').map(str::trim);
            let essence = parts.next().unwrap_or_default();
            let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
            let quality =
                parameters.iter().find(|(key, _)| *key == "q").and_then(|(_, value)| value.parse().ok());
            Media { essence, parameters, quality: quality.unwrap_or(1.0) }
        })
        .collect();
    media.sort_by(|one, other| other.quality.total_cmp(&one.quality));
    media
}

/// The first acceptable format; none means 406. `streaming` answers are JSON only.
pub(crate) fn negotiate(header: Option<&str>, streaming: bool) -> Option<Format> {
    let Some(header) = header.filter(|header| !header.trim().is_empty()) else {
        return Some(Format::default());
    };
    parse(header).iter().filter(|media| media.quality > 0.0).find_map(|media| {
        let yaml = match media.essence {
            "application/json" | "*/*" | "application/*" => false,
            "application/yaml" if !streaming => true,
            _ => return None,
        };
        let shape = match media.parameter("as") {
            None => Shape::Object,
            Some(kind) => {
                let known = media.parameter("g") == Some("meta.k8s.io") && media.parameter("v") == Some("v1");
                match kind {
                    "Table" if known => Shape::Table,
                    "PartialObjectMetadata" | "PartialObjectMetadataList" if known => Shape::Partial,
                    _ => return None,
                }
            }
        };
        Some(Format { shape, yaml })
    })
}

/// The version of aggregated discovery that the client prefers over the legacy documents, if any.
pub(crate) fn wants_aggregated_discovery(header: Option<&str>) -> bool {
    let media = parse(header.unwrap_or_default());
    let first = media.iter().find(|media| match media.parameter("as") {
        None => matches!(media.essence, "application/json" | "*/*" | "application/*"),
        Some(kind) => {
            media.essence == "application/json"
                && kind == "APIGroupDiscoveryList"
                && media.parameter("g") == Some("apidiscovery.k8s.io")
                && media.parameter("v") == Some("v2")
        }
    });
    first.is_some_and(|media| media.parameter("as").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        let object = Some(Format::default());
        let table = Some(Format { shape: Shape::Table, yaml: false });
        let partial = Some(Format { shape: Shape::Partial, yaml: false });
        let cases = [
            (None, object),
            (Some("*/*"), object),
            (Some("application/json"), object),
            (Some("application/json;as=Table;v=v1;g=meta.k8s.io,application/json"), table),
            (Some("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"), object),
            (Some("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"), partial),
            (Some("application/vnd.kubernetes.protobuf,application/json"), object),
            (Some("application/vnd.kubernetes.protobuf"), None),
            (
                Some("application/json;q=0.1, application/yaml"),
                Some(Format { shape: Shape::Object, yaml: true }),
            ),
            (Some("application/json;as=Table;v=v1;g=example.com"), None),
        ];
        for (header, expected) in cases {
            assert_eq!(negotiate(header, false), expected, "{header:?}");
        }
        assert_eq!(negotiate(Some("application/yaml"), true), None);
    }

    #[test]
    fn discovery() {
        let kubectl = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                       application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert!(wants_aggregated_discovery(Some(kubectl)));
        assert!(!wants_aggregated_discovery(Some("application/json")));
        assert!(!wants_aggregated_discovery(None));
        assert!(!wants_aggregated_discovery(Some(
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
        )));
    }
}
