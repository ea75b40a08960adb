//! What a repository is filled with, and what is written down of it.

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::filling::Filling;
use super::plan::Shape;
use crate::support::{Content, DOCKER_MANIFEST};

/// The blobs that all manifests are made of.
pub(super) const CONFIG: &str = "{}";
pub(super) const LAYER: &str = "layer";

impl Filling<'_> {
    /// An image unlike any other.
    pub(super) fn image(&mut self) -> Content {
        self.made += 1;
        named(&Content::image(CONFIG, LAYER), &format!("{} {}", self.name, self.made))
    }

    /// The same, of Docker's media type.
    pub(super) fn docker_image(&mut self) -> Content {
        let mut value = with(&self.image().value, "mediaType", DOCKER_MANIFEST.into());
        value["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json".into();
        value["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip".into();
        Content::new(DOCKER_MANIFEST, &value)
    }

    pub(super) fn image_about(&mut self, subject: &Content) -> Content {
        self.image().changed(|manifest| {
            manifest["artifactType"] = "application/vnd.example.signature".into();
            manifest["subject"] = subject.descriptor();
        })
    }

    /// An index of new images, and now and then of one that was there before. Its links are not written down yet.
    pub(super) async fn index_of_new(&mut self) -> Content {
        let mut parts = Vec::new();
        for _ in 0..2 {
            let image = self.image();
            self.store(&image).await;
            parts.push(image);
        }
        if self.random.coin() {
            parts.push(self.random.pick(&self.stored).clone());
        }
        Content::index(&parts.iter().collect::<Vec<_>>())
    }

    pub(super) async fn index(&mut self) -> Content {
        let index = self.index_of_new().await;
        self.link_parts(&index);
        index
    }

    /// One with a `subject`, to be pushed.
    pub(super) async fn referrer(&mut self, shape: Shape, subject: &Content) -> Content {
        let referrer = match shape {
            Shape::Manifest => self.image_about(subject),
            Shape::Index => {
                self.index_of_new().await.changed(|index| index["subject"] = subject.descriptor())
            }
        };
        self.link_parts(&referrer);
        self.link(&subject.digest, &referrer, "subject");
        referrer
    }

    /// Something to refer to, which now and then is not there.
    pub(super) fn subject(&mut self) -> Content {
        if self.stored.is_empty() || self.random.below(8) == 0 {
            self.image()
        } else {
            self.random.pick(&self.stored).clone()
        }
    }

    /// Something to refer to, and its tag with this suffix, which does not exist yet.
    pub(super) fn subject_without_tag(&mut self, suffix: &str) -> (Content, String) {
        loop {
            let subject = self.subject();
            let tag = format!("{}{suffix}", subject.digest.replace(':', "-"));
            if self.taken.insert(tag.clone()) {
                return (subject, tag);
            }
        }
    }

    /// Pushes a list of these to the referrers tag of `subject`, about which the second ones are not.
    pub(super) async fn list(
        &mut self,
        tag: &str,
        subject: &Content,
        honest: &[&Content],
        other: &[&Content],
    ) {
        self.seem(subject);
        for referrer in honest {
            self.link(&subject.digest, referrer, "fallback");
        }
        let list = Content::index(&[honest, other].concat());
        self.client.push_as(self.name, tag, &list).await;
        self.repository.tags += 1;
    }

    /// Pushes it without a tag.
    pub(super) async fn store(&mut self, content: &Content) {
        self.client.push(self.name, content).await;
        self.stored.push(content.clone());
    }

    /// Pushes it to a new tag.
    pub(super) async fn tag(&mut self, content: &Content) {
        let tag = match self.repository.tags {
            0 => "latest".to_owned(),
            tags => format!("v1.{tags}"),
        };
        self.tag_as(&tag, content).await;
    }

    pub(super) async fn tag_as(&mut self, tag: &str, content: &Content) {
        self.client.push_as(self.name, tag, content).await;
        self.repository.tags += 1;
        self.stored.push(content.clone());
    }

    pub(super) async fn delete(&mut self, content: &Content) {
        let path = format!("/v2/{}/manifests/{}", self.name, content.digest);
        assert_eq!(self.client.delete(&path).await.status, StatusCode::ACCEPTED);
    }

    pub(super) fn link(&mut self, subject: &str, referrer: &Content, kind: &str) {
        let links = self.repository.links.entry(subject.to_owned()).or_default();
        links.insert((referrer.digest.clone(), kind.to_owned()));
    }

    /// If `content` is an index, it is the parent of its entries.
    pub(super) fn link_parts(&mut self, content: &Content) {
        for entry in content.value["manifests"].as_array().into_iter().flatten() {
            self.link(entry["digest"].as_str().unwrap(), content, "parent");
        }
    }

    /// Writes down that something may seem to refer to it.
    pub(super) fn seem(&mut self, subject: &Content) {
        self.repository.links.entry(subject.digest.clone()).or_default();
    }
}

pub(super) fn named(image: &Content, name: &str) -> Content {
    image.changed(|manifest| manifest["annotations"] = json!({"name": name}))
}

/// The same object with this member.
pub(super) fn with(object: &Value, member: &str, value: Value) -> Value {
    let mut object = object.clone();
    object[member] = value;
    object
}
