//! Query strings.

use std::convert::Infallible;
use std::future::ready;
use std::str::FromStr;

use serde::de::value::{self, MapDeserializer};
use serde::de::{DeserializeOwned, Error, Unexpected};
use serde::{Deserialize, Deserializer};
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

/// A field that is a number, if it is there.
pub(super) fn number<'de, D: Deserializer<'de>, T: FromStr>(field: D) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(field)?;
    text.parse().map(Some).map_err(|_| D::Error::invalid_value(Unexpected::Str(&text), &"a whole number"))
}
