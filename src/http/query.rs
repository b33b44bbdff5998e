//! Query strings.

use std::convert::Infallible;
use std::future::ready;

use serde::de::DeserializeOwned;
use serde::de::value::{self, MapDeserializer};
use warp::Filter;

/// Why a query is not what it should be.
pub(super) type Fault = serde_path_to_error::Error<value::Error>;

/// The query, if there is a question mark, even with nothing behind it.
pub(super) fn query() -> impl Filter<Extract = (Option<String>,), Error = Infallible> + Clone {
    warp::query::raw().map(Some).or_else(|_| ready(Ok((None,))))
}

/// Its pairs as the fields of a struct. What it has besides is ignored.
pub(super) fn parse<T: DeserializeOwned>(query: &str) -> Result<T, Fault> {
    let pairs = form_urlencoded::parse(query.as_bytes());
    serde_path_to_error::deserialize(MapDeserializer::<_, value::Error>::new(pairs))
}
