//! What is deleted and renamed, once and again.

use super::*;

#[test]
fn renames_that_push_each_other_on_are_done_once() {
    let deltas = json!([rename("rename_db", "b", "c"), rename("rename_db", "a", "b")]);
    let spec = spec(json!([]), json!([]), deltas);
    let before = server(&[], &[("a", "cloud_admin"), ("b", "cloud_admin")]);
    assert_eq!(planned(&before, &spec), ["rename database \"b\" to \"c\"", "rename database \"a\" to \"b\""]);
    let after = server(&[], &[("b", "cloud_admin"), ("c", "cloud_admin")]);
    assert_eq!(planned(&after, &spec), [""; 0]);
}

#[test]
fn a_chain_behind_a_deletion_loses_nothing_when_repeated() {
    let deltas = json!([
        op("delete_db", "x"),
        rename("rename_db", "c", "x"),
        rename("rename_db", "b", "c"),
        rename("rename_db", "a", "b")
    ]);
    let spec = spec(json!([]), json!([]), deltas);
    let four = ["a", "b", "c", "x"].map(|name| (name, "cloud_admin"));
    assert_eq!(planned(&server(&[], &four), &spec).len(), 4);
    assert_eq!(planned(&server(&[], &four[1..]), &spec), [""; 0]);
}

#[test]
fn a_deletion_spares_what_was_renamed_onto_its_name() {
    let deltas = json!([op("delete_db", "x"), rename("rename_db", "y", "x")]);
    let wanted = spec(json!([]), json!([{ "name": "x", "owner": "cloud_admin" }]), deltas);
    let before = server(&[], &[("x", "cloud_admin"), ("y", "cloud_admin")]);
    assert_eq!(planned(&before, &wanted), ["drop database \"x\"", "rename database \"y\" to \"x\""]);
    let after = server(&[], &[("x", "cloud_admin")]);
    assert_eq!(planned(&after, &wanted), [""; 0]);

    let deltas = json!([op("delete_role", "x"), rename("rename_role", "y", "x")]);
    let wanted = spec(json!([{ "name": "x" }]), json!([]), deltas);
    assert_eq!(planned(&server(&[("x", None)], &[]), &wanted), [""; 0]);
    assert_eq!(planned(&server(&[("y", None)], &[]), &wanted), ["rename role \"y\" to \"x\""]);
}

#[test]
fn deleted_databases_lose_subscriptions_and_marks_first() {
    let mut existing = server(&[], &[("d", "cloud_admin"), ("half", "cloud_admin")]);
    let database = existing.databases.get_mut("d").unwrap();
    database.attributes.is_template = Some(true);
    database.subscriptions = ["s".to_owned()].into();
    existing.databases.get_mut("half").unwrap().is_invalid = true;
    let spec = spec(json!([]), json!([]), json!([op("delete_db", "d"), op("delete_db", "half")]));
    let plan = plan(&existing, &spec, &options()).unwrap();
    let steps: Vec<_> = plan.steps().iter().map(Step::to_string).collect();
    assert_eq!(
        steps,
        ["drop database \"half\"", "drop 1 subscription(s) in database \"d\"", "drop database \"d\""]
    );
    assert_eq!(
        plan.steps()[2].sql().unwrap()[1..],
        ["ALTER DATABASE \"d\" IS_TEMPLATE false", "DROP DATABASE IF EXISTS \"d\" WITH (FORCE)",]
    );
}

#[test]
fn a_subscription_behind_a_closed_door_keeps_its_database() {
    let mut existing = server(&[], &[("d", "cloud_admin")]);
    let database = existing.databases.get_mut("d").unwrap();
    database.attributes.allow_connections = Some(false);
    database.subscriptions = ["s".to_owned()].into();
    let spec = spec(json!([]), json!([]), json!([op("delete_db", "d")]));
    assert!(refused(&existing, &spec).contains("subscription"), "{}", refused(&existing, &spec));
}

#[test]
fn what_is_listed_is_not_deleted() {
    let listed = || json!([{ "name": "x", "owner": "cloud_admin" }]);
    let plain = spec(json!([]), listed(), json!([op("delete_db", "x")]));
    let arrived = json!([rename("rename_db", "y", "x"), op("delete_db", "x")]);
    let arrived = spec(json!([]), listed(), arrived);
    // Whether it is there or not: otherwise the first apply would make what the second one refuses.
    for existing in [server(&[], &[("x", "cloud_admin")]), server(&[], &[])] {
        for spec in [&plain, &arrived] {
            assert_eq!(
                refused(&existing, spec),
                "the spec deletes database \"x\" and lists it: each apply would lose its data"
            );
        }
    }
}

#[test]
fn what_new_databases_are_copied_from_stays() {
    let existing = server(&[], &[("template0", "cloud_admin"), ("template1", "cloud_admin")]);
    for name in ["template0", "template1"] {
        for deltas in [json!([op("delete_db", name)]), json!([rename("rename_db", name, "t")])] {
            let message = refused(&existing, &spec(json!([]), json!([]), deltas));
            assert!(
                message.contains(&format!("database {name:?}, which this program itself works with")),
                "{message}"
            );
        }
    }
}

#[test]
fn a_name_that_was_given_away_and_taken_again_is_not_given_away_again() {
    let deltas = json!([rename("rename_db", "a", "b"), rename("rename_role", "r", "s")]);
    let wanted = spec(json!([{ "name": "r" }]), json!([{ "name": "a", "owner": "cloud_admin" }]), deltas);
    let before = server(&[("r", None)], &[("a", "cloud_admin")]);
    assert!(planned(&before, &wanted).contains(&"rename database \"a\" to \"b\"".to_owned()));
    let after = server(&[("r", None), ("s", None)], &[("a", "cloud_admin"), ("b", "cloud_admin")]);
    assert_eq!(planned(&after, &wanted), [""; 0]);
}
