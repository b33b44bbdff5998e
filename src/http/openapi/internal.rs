//! What is written of the operations which only the internal server has.

use super::external::not_built;
use super::{About, Family, schemas};
use crate::limits;

pub(in crate::http) fn refresh() -> About {
    About::new("Asks for a look at the spec's source, which is taken later")
        .empty(200, "taken note of")
        .error(500, "not in this status")
        .of_machine()
}

pub(in crate::http) fn grant() -> About {
    About::new("Grants what a role lacks on a schema")
        .body("GrantRequest", limits::HTTP_BODY_BYTES, Family::Json)
        .while_running()
        .answer(201, schemas::named("GrantRequest"), "the role has all of it; repeats the request")
        .of_postgres()
}

pub(in crate::http) fn install_extension() -> About {
    About::new("Creates an extension, or brings the one that is there to a version")
        .body("ExtensionRequest", limits::HTTP_BODY_BYTES, Family::Json)
        .while_running()
        .answer(201, schemas::named("Extension"), "the extension has the version")
        .of_postgres()
}

pub(in crate::http) fn remote_extension() -> About {
    not_built("Fetches a part of an extension from a store")
}

pub(in crate::http) fn failpoints() -> About {
    About::new("Sets places at which something is to happen in tests")
        .body("Failpoints", limits::HTTP_BODY_BYTES, Family::Json)
        .error(412, "the program is built without them")
}
